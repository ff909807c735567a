// Sessions of the official TypeScript SDK of Letta.
import { createRequire } from "node:module";

import { added, tool } from "./shown.mjs";

const require = createRequire(new URL("../../../clients/typescript/package.json", import.meta.url));
const { Letta, APIError, APIConnectionError } = require("@letta-ai/letta-client");

class LettaSession {
    constructor({ url, server, agent, kept }) {
        this.sdk = new Letta({ baseURL: url, apiKey: "any", timeout: 20_000 });
        this.made = new Letta({ baseURL: server, apiKey: "any" }).conversations;
        this.agent = agent;
        this.kept = kept ?? { conversation: null, shown: [], end: null };
    }

    get shown() {
        return this.kept.shown;
    }

    async send(text) {
        this.kept.conversation ??= (await this.made.create({ agent_id: this.agent })).id;
        return await this.begin({ role: "user", content: text });
    }

    async approve() {
        const { asked } = this.kept;
        return await this.begin({
            type: "approval",
            approvals: [{ type: "approval", tool_call_id: asked, approve: true }],
        });
    }

    begin(message) {
        const otid = crypto.randomUUID();
        Object.assign(this.kept, { otid, message: { ...message, otid }, before: this.kept.shown });
        return this.repeat();
    }

    /** Sends again, under the same OTID: the answer begins anew. */
    repeat() {
        const { conversation, message, before } = this.kept;
        Object.assign(this.kept, { shown: before, last: 0, end: null });
        const body = { messages: [message], background: true, stream_tokens: true };
        return this.read(() => this.sdk.conversations.messages.create(conversation, body));
    }

    resume() {
        const { conversation, otid, last } = this.kept;
        return this.read(() =>
            this.sdk.conversations.messages.stream(conversation, { otid, starting_after: last }),
        );
    }

    async cancel() {
        await this.sdk.conversations.cancel(this.kept.conversation);
    }

    async read(opened) {
        try {
            for await (const event of await opened()) this.take(event);
        } catch (error) {
            const isFromServer = error instanceof APIError && !(error instanceof APIConnectionError);
            if (isFromServer && error.error?.seq_id) this.kept.last = error.error.seq_id;
            if (isFromServer) this.kept.end = `failed: ${error.message}`;
            return isFromServer ? this.kept.end : `broke: ${error.message}`;
        }
        return this.kept.end ?? "hangs";
    }

    take(event) {
        const { kept } = this;
        if (event.message_type === "ping") return;
        kept.last = event.seq_id;
        if (event.message_type === "assistant_message") kept.shown = added(kept.shown, "text", event.content);
        if (event.message_type === "reasoning_message") kept.shown = added(kept.shown, "reasoning", event.reasoning);
        if (event.message_type === "tool_return_message")
            kept.shown = [...kept.shown, tool(event.name, event.tool_return)];
        if (event.message_type === "approval_request_message") kept.asked ??= event.tool_call.tool_call_id;
        const ends = { end_turn: "completed", cancelled: "cancelled", requires_approval: "asked" };
        if (event.message_type === "stop_reason") kept.end = ends[event.stop_reason] ?? `failed: ${event.stop_reason}`;
    }
}

export const CLIENTS = { "letta": (options) => new LettaSession(options) };
