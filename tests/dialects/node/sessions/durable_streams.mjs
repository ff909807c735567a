// A session of the client of Durable Streams. It only reads: the message is sent past it, and past the relay.
import { stream } from "@durable-streams/client";

import { added, tool } from "./shown.mjs";

const backoffOptions = { initialDelay: 10, maxDelay: 50, multiplier: 1 };

class LogSession {
    constructor({ url, server, agent, kept }) {
        Object.assign(this, { url, server, agent });
        this.kept = kept ?? { run: null, events: [] };
    }

    async send(text) {
        const headers = { "content-type": "application/json" };
        const post = (path, body) =>
            fetch(`${this.server}${path}`, { method: "POST", headers, body: JSON.stringify(body) });
        const made = await (await post(`/v1/conversations/?agent_id=${this.agent}`, {})).json();
        const body = { input: text, background: true, stream_tokens: true };
        const sent = await post(`/v1/conversations/${made.id}/messages`, body);
        await sent.body.cancel();
        this.kept.run = sent.headers.get("x-run-id");
        return await this.resume();
    }

    async resume() {
        const { run, events } = this.kept;
        const url = `${this.url}/v1/runs/${run}/log`;
        const offset = String(events.at(-1)?.seq_id ?? 0).padStart(16, "0");
        try {
            const log = await stream({ url, offset, live: "sse", backoffOptions });
            log.closed.catch(() => {}); // The loop raises the same.
            for await (const event of log.jsonStream()) events.push(event);
        } catch (error) {
            return `broke: ${error.message}`;
        }
        return this.end;
    }

    get end() {
        const { events } = this.kept;
        const failure = events.find((one) => one.message_type === "error_message");
        if (failure) return `failed: ${failure.message}`;
        const reason = events.find((one) => one.message_type === "stop_reason")?.stop_reason;
        return { end_turn: "completed", requires_approval: "asked" }[reason] ?? "hangs";
    }

    get shown() {
        let shown = [];
        for (const event of this.kept.events) {
            if (event.message_type === "assistant_message") shown = added(shown, "text", event.content);
            if (event.message_type === "reasoning_message") shown = added(shown, "reasoning", event.reasoning);
            if (event.message_type === "tool_return_message") shown = [...shown, tool(event.name, event.tool_return)];
        }
        return shown;
    }
}

export const CLIENTS = { "durable-streams": (options) => new LogSession(options) };
