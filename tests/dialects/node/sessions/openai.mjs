// Sessions of OpenAI's Node client: Responses and Chat Completions, by raw streams and by the helpers.
import OpenAI from "openai";

import { added, tool } from "./shown.mjs";

const newClient = (url) => new OpenAI({ apiKey: "none", baseURL: `${url}/openai/v1`, timeout: 20_000 });

/** Returns how a request ended that raised an error. */
function endOf(error) {
    const isFromServer = error instanceof OpenAI.APIError && !(error instanceof OpenAI.APIConnectionError);
    return `${isFromServer ? "failed" : "broke"}: ${error.message}`;
}

class Responses {
    constructor({ url, agent, kept }) {
        this.sdk = newClient(url);
        this.agent = agent;
        this.kept = kept ?? { shown: [], end: null };
    }

    get shown() {
        return this.kept.shown;
    }

    send(input) {
        const { shown } = this.kept;
        Object.assign(this.kept, { input, key: crypto.randomUUID(), before: shown });
        return this.repeat();
    }

    /** Asks again, under the same key: the answer begins anew. */
    repeat() {
        const { input, key, previous, before } = this.kept;
        Object.assign(this.kept, { shown: before, id: undefined, last: -1, end: null });
        const body = { model: this.agent, input, previous_response_id: previous };
        return this.read(() => this.created(body, { headers: { "Idempotency-Key": key } }));
    }

    resume() {
        const { id, last } = this.kept;
        return id === undefined ? this.repeat() : this.read(() => this.retrieved(id, last));
    }

    approve() {
        this.kept.previous = this.kept.id;
        return this.send([{ type: "mcp_approval_response", approval_request_id: this.kept.asked, approve: true }]);
    }

    async cancel() {
        await this.sdk.responses.cancel(this.kept.id);
    }

    created(body, options) {
        return this.sdk.responses.create({ ...body, background: true, stream: true }, options);
    }

    retrieved(id, last) {
        return this.sdk.responses.retrieve(id, { stream: true, starting_after: last });
    }

    async read(opened) {
        try {
            for await (const event of await opened()) this.take(event);
        } catch (error) {
            return endOf(error);
        }
        return this.kept.end ?? "hangs";
    }

    take(event) {
        const { kept } = this;
        kept.last = event.sequence_number;
        if (event.type === "response.created") kept.id = event.response.id;
        if (event.type === "response.output_text.delta") kept.shown = added(kept.shown, "text", event.delta);
        if (event.type === "response.reasoning_text.delta") kept.shown = added(kept.shown, "reasoning", event.delta);
        if (event.type === "response.output_item.done") this.takeItem(event.item);
        const status = event.response?.status;
        if (["completed", "failed", "cancelled", "incomplete"].includes(status)) {
            kept.end = status === "completed" && kept.asked && !kept.previous ? "asked" : status;
            if (status === "failed") kept.end = `failed: ${event.response.error.message}`;
        }
    }

    takeItem(item) {
        if (item.type === "mcp_call") this.kept.shown = [...this.kept.shown, tool(item.name, item.output)];
        if (item.type === "mcp_approval_request") this.kept.asked = item.id;
    }
}

class ResponsesHelper extends Responses {
    created(body, options) {
        return this.sdk.responses.stream(body, options);
    }

    retrieved(id, last) {
        return this.sdk.responses.stream({ response_id: id, starting_after: last });
    }
}

class ChatCompletions {
    constructor({ url, agent, kept }) {
        this.sdk = newClient(url);
        this.agent = agent;
        this.kept = kept ?? {};
        this.shown = [];
    }

    send(text) {
        Object.assign(this.kept, { text, key: crypto.randomUUID() });
        return this.repeat();
    }

    /** Asks again, under the same key: the answer begins anew. */
    async repeat() {
        this.shown = [];
        const body = { model: this.agent, messages: [{ role: "user", content: this.kept.text }] };
        const headers = { "Idempotency-Key": this.kept.key, "X-Reattach-Chat-Key": this.kept.key };
        let end = "hangs";
        try {
            for await (const { choices } of await this.opened(body, { headers })) {
                this.shown = added(this.shown, "reasoning", choices[0]?.delta.reasoning_content);
                this.shown = added(this.shown, "text", choices[0]?.delta.content);
                if (choices[0]?.finish_reason) end = "completed";
            }
        } catch (error) {
            return endOf(error);
        }
        return end;
    }

    resume() {
        return this.repeat();
    }

    opened(body, options) {
        return this.sdk.chat.completions.create({ ...body, stream: true }, options);
    }
}

class ChatCompletionsHelper extends ChatCompletions {
    opened(body, options) {
        return this.sdk.chat.completions.stream(body, options);
    }
}

export const CLIENTS = {
    "responses": (options) => new Responses(options),
    "responses-helper": (options) => new ResponsesHelper(options),
    "chat": (options) => new ChatCompletions(options),
    "chat-helper": (options) => new ChatCompletionsHelper(options),
};
