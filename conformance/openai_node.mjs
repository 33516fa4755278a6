// The openai package for Node.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "none", maxRetries: 1 });
const model = "zaya";
const messages = [{ role: "user", content: "What is 40 plus 2?" }];
const expected = "The answer is \\boxed{42}.";
const add = { name: "add", parameters: { type: "object", properties: {} } };

const checks = {
  async chat() {
    const reply = await client.chat.completions.create({ model, messages, mrsa: { candidates: 4 } });
    assert.equal(reply.choices[0].message.content, expected);
    assert.ok(reply.usage.total_tokens > 0);
  },
  async stream() {
    let text = "";
    for await (const chunk of await client.chat.completions.create({ model, messages, stream: true })) {
      text += chunk.choices[0]?.delta.content ?? "";
    }
    assert.equal(text, expected);
  },
  async tools() {
    const reply = await client.chat.completions.create({ model, messages, tools: [{ type: "function", function: add }] });
    assert.equal(reply.choices[0].message.tool_calls[0].function.name, "add");
  },
  async errors() {
    await assert.rejects(client.chat.completions.create({ model: "other", messages }), OpenAI.NotFoundError);
    await assert.rejects(client.chat.completions.create({ model, messages, temperature: 9 }), OpenAI.BadRequestError);
  },
  async parse() {
    const response_format = zodResponseFormat(z.object({ answer: z.number() }), "answer");
    const reply = await client.chat.completions.parse({ model, messages, response_format });
    assert.deepEqual(reply.choices[0].message.parsed, { answer: 42 });
  },
  async retries() {
    const ask = () => [{ role: "user", content: `Fail once: ${crypto.randomUUID()}` }];
    const reply = await client.chat.completions.create({ model: `${model}@single`, messages: ask() });
    assert.equal(reply.choices[0].message.content, expected);
    const impatient = client.withOptions({ maxRetries: 0 });
    const once = impatient.chat.completions.create({ model: `${model}@single`, messages: ask() });
    await assert.rejects(once, OpenAI.InternalServerError);
  },
  async responses() {
    const reply = await client.responses.create({ model, input: "What is 40 plus 2?" });
    assert.equal(reply.output_text, expected);
    const kinds = [];
    for await (const event of await client.responses.create({ model, input: "Again?", stream: true })) kinds.push(event.type);
    assert.equal(kinds.at(-1), "response.completed");
  },
  async background() {
    let response = await client.responses.create({ model, input: "What is 40 plus 2?", background: true });
    while (["queued", "in_progress"].includes(response.status)) {
      await new Promise((resolve) => setTimeout(resolve, 50));
      response = await client.responses.retrieve(response.id);
    }
    assert.equal(response.output_text, expected);
    const rest = [];
    const stream = await client.responses.retrieve(response.id, { stream: true, starting_after: 2 });
    for await (const event of stream) rest.push(event.sequence_number);
    assert.equal(rest[0], 3);
  },
};

for (const [name, check] of Object.entries(checks)) {
  await check();
  console.log(`openai for node: ${name} passed`);
}
