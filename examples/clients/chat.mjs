// The same as chat.py: node chat.mjs, after npm install openai.
import OpenAI from "openai";

const { ROSTER_URL = "http://127.0.0.1:8080/v1", ROSTER_KEY = "no-key", MODEL = "atlas", ADAPTER = "pirate" } = process.env;
const client = new OpenAI({ baseURL: ROSTER_URL, apiKey: ROSTER_KEY });
const messages = [{ role: "user", content: "What is the capital of France?" }];

const ids = [];
for await (const one of client.models.list()) ids.push(one.id);
console.log("There are:", ids.join(", "));

const answer = await client.chat.completions.create({ model: MODEL, messages, temperature: 0 });
console.log(`${answer.model}: ${answer.choices[0].message.content}`);

// Fields that OpenAI does not have are sent as they are.
const stream = await client.chat.completions.create({
  model: MODEL,
  messages,
  temperature: 0,
  stream: true,
  adapters: ADAPTER,
});
process.stdout.write(`${MODEL}:${ADAPTER}: `);
for await (const chunk of stream) process.stdout.write(chunk.choices[0]?.delta.content ?? "");
console.log();
