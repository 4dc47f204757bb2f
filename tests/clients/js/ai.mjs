// Vercel's ai package with its OpenAI-compatible provider: text, streams, tools, objects, errors.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

const roster = createOpenAICompatible({
  name: "roster",
  baseURL: process.env.BASE_URL,
  apiKey: "no-key",
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const prompt = "What is the capital of France?";
const maxRetries = 0;
const schema = z.object({ name: z.string(), capital: z.string() });
const country = { name: "France", capital: "Paris" };

test("text", async () => {
  const { text, finishReason, usage } = await generateText({ model: roster("atlas"), prompt, maxRetries, temperature: 0 });
  assert.equal(text, "The capital of France is Paris.");
  assert.equal(finishReason, "stop");
  assert.ok(usage.outputTokens > 0);
});

test("stream", async () => {
  const result = streamText({ model: roster("atlas:pirate"), prompt, maxRetries, temperature: 0 });
  let text = "";
  for await (const piece of result.textStream) text += piece;
  assert.equal(text, "Arr! The capital of France be Paris.");
  assert.ok((await result.usage).outputTokens > 0);
});

test("completion", async () => {
  const { text } = await generateText({ model: roster.completionModel("geographer"), prompt, maxRetries });
  assert.deepEqual(JSON.parse(text), country);
});

for (const run of [generateText, streamText]) {
  test(`tools, ${run.name}`, async () => {
    const asked = [];
    const get_weather = tool({
      description: "The weather of some days",
      inputSchema: z.object({ city: z.string(), days: z.number().int() }),
      execute: async (given) => (asked.push(given), "sunny"),
    });
    const model = roster("traveller");
    const result = await run({ model, prompt, maxRetries, tools: { get_weather }, stopWhen: stepCountIs(3) });
    assert.equal(await result.text, "Sunny in Paris, rain in Rome.");
    assert.deepEqual(asked.map((given) => given.city).sort(), ["Paris", "Rome"]);
  });
}

test("object", async () => {
  const { object } = await generateObject({ model: roster("geographer"), schema, prompt, maxRetries });
  assert.deepEqual(object, country);
});

test("streamed object", async () => {
  const result = streamObject({ model: roster("geographer"), schema, prompt, maxRetries });
  let last;
  for await (const partial of result.partialObjectStream) last = partial;
  assert.deepEqual(last, country);
  assert.deepEqual(await result.object, country);
});

test("object by grammar alone", async () => {
  const vote = z.object({ sure: z.boolean(), choice: z.enum(["yes", "no"]) });
  const limits = { maxRetries, maxOutputTokens: 500 };
  const { object } = await generateObject({ model: roster("babbler"), schema: vote, prompt, ...limits });
  assert.equal(typeof object.sure, "boolean");
});

test("reasoning", async () => {
  const { text, reasoningText } = await generateText({ model: roster("thinker"), prompt, maxRetries });
  assert.match(reasoningText, /Its capital\?/);
  assert.equal(text.trim(), "Paris, naturellement.");
});

test("errors", async () => {
  await assert.rejects(generateText({ model: roster("nobody"), prompt, maxRetries }), (error) => {
    assert.ok(APICallError.isInstance(error));
    assert.equal(error.statusCode, 404);
    assert.match(error.message, /no model 'nobody'/);
    return true;
  });
});
