// The openai package for Node: chat, streams, tools, structured answers, errors.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "no-key", maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const Country = z.object({ name: z.string(), capital: z.string() });
const parameters = {
  type: "object",
  properties: { city: { type: "string" }, days: { type: "integer" } },
  required: ["city", "days"],
};
const tools = [{ type: "function", function: { name: "get_weather", parameters } }];

test("chat", async () => {
  const reply = await client.chat.completions.create({ model: "atlas", messages, temperature: 0 });
  assert.equal(reply.choices[0].message.content, "The capital of France is Paris.");
  assert.equal(reply.choices[0].finish_reason, "stop");
  assert.ok(reply._request_id);
});

test("stream", async () => {
  const stream = await client.chat.completions.create({ model: "atlas:pirate", messages, temperature: 0, stream: true });
  let text = "";
  for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? "";
  assert.equal(text, "Arr! The capital of France be Paris.");
});

test("a stream that is left", async () => {
  const stream = await client.chat.completions.create({ model: "babbler", messages, max_tokens: 5000, stream: true });
  for await (const chunk of stream) if (chunk.choices.length) break;
  assert.ok(stream.controller.signal.aborted);
});

test("completions", async () => {
  const reply = await client.completions.create({ model: "geographer", prompt: "Which?", temperature: 0 });
  assert.deepEqual(JSON.parse(reply.choices[0].text), { name: "France", capital: "Paris" });
});

test("models", async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert.ok(ids.includes("atlas:pirate"));
  assert.equal((await client.models.retrieve("atlas")).object, "model");
});

test("tools", async () => {
  const asked = [];
  const get_weather = (given) => (asked.push(given), "sunny");
  const runner = client.chat.completions.runTools({
    model: "traveller",
    messages,
    stream: true,
    tools: [{ type: "function", function: { name: "get_weather", parameters, parse: JSON.parse, function: get_weather } }],
  });
  assert.equal(await runner.finalContent(), "Sunny in Paris, rain in Rome.");
  assert.deepEqual(asked.map((given) => given.city), ["Paris", "Rome"]);
});

test("tools, unstreamed", async () => {
  const reply = await client.chat.completions.create({ model: "weather", messages, tools });
  const [call] = reply.choices[0].message.tool_calls;
  assert.deepEqual(JSON.parse(call.function.arguments), { city: "Paris", days: 2 });
  assert.equal(reply.choices[0].finish_reason, "tool_calls");
});

test("structured", async () => {
  const response_format = zodResponseFormat(Country, "country");
  const reply = await client.chat.completions.parse({ model: "geographer", messages, response_format });
  assert.deepEqual(reply.choices[0].message.parsed, { name: "France", capital: "Paris" });
});

test("structured by grammar alone", async () => {
  const response_format = zodResponseFormat(z.object({ sure: z.boolean(), choice: z.enum(["yes", "no"]) }), "vote");
  const reply = await client.chat.completions.parse({ model: "babbler", messages, response_format, max_tokens: 500 });
  assert.equal(typeof reply.choices[0].message.parsed.sure, "boolean");
});

test("errors", async () => {
  const ask = (fields) => client.chat.completions.create({ model: "atlas", messages, ...fields });
  await assert.rejects(ask({ temperature: -1 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, "temperature");
    return true;
  });
  await assert.rejects(ask({ model: "nobody", stream: true }), OpenAI.NotFoundError);
});
