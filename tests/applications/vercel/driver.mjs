// The Vercel AI SDK with Letta's provider.
//
// The argument is a JSON list of steps, done one after the other; each answers with a line of JSON
// on stdout: {"value"} or {"error"}.
//
// {"do": "generate" | "stream", "agent": {options of the provider}, "prompt": "..."}
// {"do": "history", "agent": {"id"}}   the conversation as messages for a page, by the provider
// {"do": "resume", "run", "after"}     what followed in a run, by the provider's own client

import { generateText, streamText } from "ai";
import { convertToAiSdkMessage, createLetta } from "@letta-ai/vercel-ai-sdk-provider";

const letta = createLetta({
  baseUrl: process.env.LETTA_BASE_URL,
  token: process.env.LETTA_API_KEY,
});

const options = ({ agent, prompt }) => ({
  model: letta(),
  providerOptions: { letta: { agent } },
  tools: { add: letta.tool("add") },
  prompt,
  maxRetries: 0,
});

const steps = {
  async generate(step) {
    const { text, reasoningText, toolCalls, finishReason, usage } = await generateText(options(step));
    return { text, reasoningText, tools: toolCalls.map((call) => call.toolName), finishReason, usage };
  },

  async stream(step) {
    let text = "";
    let reasoning = "";
    const tools = [];
    const errors = [];
    const result = streamText({ ...options(step), onError: () => {} });
    for await (const part of result.fullStream) {
      if (part.type === "text-delta") text += part.text;
      else if (part.type === "reasoning-delta") reasoning += part.text;
      else if (part.type === "tool-call") tools.push(part.toolName);
      else if (part.type === "tool-result") tools.push(part.output);
      else if (part.type === "error") errors.push(String(part.error));
    }
    return { text, reasoning, tools, errors };
  },

  async history({ agent }) {
    return convertToAiSdkMessage(await letta.client.agents.messages.list(agent.id));
  },

  async resume({ run, after }) {
    let text = "";
    for await (const chunk of await letta.client.runs.stream(run, { startingAfter: after }))
      if (chunk.messageType === "assistant_message") text += chunk.content;
    return { text };
  },
};

for (const step of JSON.parse(process.argv[2])) {
  try {
    console.log(JSON.stringify({ value: await steps[step.do](step) }));
  } catch (error) {
    console.log(JSON.stringify({ error: `${error.name}: ${error.message}`, body: error.body ?? null }));
  }
}
