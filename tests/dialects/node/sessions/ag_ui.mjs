// Sessions of AG-UI's HttpAgent in two versions, and of CopilotKit.
import { HttpAgent as HttpAgent1 } from "@ag-ui/client";
import { CopilotKitCore } from "@copilotkit/core";
import { HttpAgent as HttpAgent0 } from "ag-ui-0";

import { tool } from "./shown.mjs";

class AgentSession {
    constructor({ url, agent, kept }, HttpAgent) {
        this.kept = kept ?? { threadId: crypto.randomUUID(), runId: null };
        const newAgent = HttpAgent && (() => new HttpAgent({ url: `${url}/ag-ui/${agent}`, threadId: this.kept.threadId }));
        this.follow(newAgent?.());
    }

    /** Takes what the client says of the end of each run. */
    follow(agent) {
        this.agent = agent;
        this.last = this.failure = null;
        agent?.subscribe({ onEvent: ({ event }) => void (this.last = event) });
    }

    async send(text) {
        this.kept.runId = crypto.randomUUID();
        this.agent.addMessage({ id: crypto.randomUUID(), role: "user", content: text });
        return await this.run();
    }

    async run(options = {}) {
        this.last = null;
        return await this.ended(this.agent.runAgent({ runId: this.kept.runId, ...options }));
    }

    async ended(promise) {
        const error = await promise.then(
            () => this.failure,
            (error) => error,
        );
        const { type, outcome, message, result } = this.last ?? {};
        if (type === "RUN_ERROR") return `failed: ${message}`;
        if (type !== "RUN_FINISHED") return error ? `broke: ${error.message}` : "hangs";
        if (result?.stop_reason === "cancelled") return "cancelled";
        if (outcome?.type === "interrupt") this.kept.asked = outcome.interrupts;
        return outcome?.type === "interrupt" ? "asked" : "completed";
    }

    resume() {
        return this.run();
    }

    repeat() {
        return this.run();
    }

    async approve() {
        this.kept.runId = crypto.randomUUID();
        const payload = { approved: true };
        return await this.run({
            resume: this.kept.asked.map(({ id }) => ({ interruptId: id, status: "resolved", payload })),
        });
    }

    get shown() {
        const results = new Map(this.agent.messages.map((one) => [one.toolCallId, one.content]));
        return this.agent.messages.flatMap((message) => {
            if (message.role === "reasoning") return [["reasoning", message.content]];
            if (message.role !== "assistant") return [];
            const calls = (message.toolCalls ?? []).map((one) => tool(one.function.name, results.get(one.id)));
            return [...(message.content ? [["text", message.content]] : []), ...calls];
        });
    }
}

// CopilotKit does nothing without a window.
const listens = { addEventListener() {}, removeEventListener() {} };

class CopilotSession extends AgentSession {
    static async opened(options) {
        globalThis.window = { location: { origin: options.url, href: options.url }, ...listens };
        globalThis.document = { visibilityState: "visible", ...listens };
        const session = new CopilotSession(options);
        const runtimeUrl = `${options.url}/copilotkit`;
        session.core = new CopilotKitCore({ runtimeUrl, deferInitialConnection: true });
        const connected = new Promise((resolve, reject) =>
            session.core.subscribe({
                onRuntimeConnectionStatusChanged: ({ status }) => {
                    if (status === "connected") resolve();
                    if (status === "error") reject(new Error("CopilotKit is not connected"));
                },
            }),
        );
        session.core.subscribe({ onError: ({ error }) => void (session.failure = error) });
        session.core.connect();
        await connected;
        session.follow(session.core.getAgent(options.agent));
        session.agent.threadId = session.kept.threadId;
        return session;
    }

    async run(options = {}) {
        this.last = this.failure = null;
        return await this.ended(this.core.runAgent({ agent: this.agent, ...options }));
    }

    async resume() {
        this.last = this.failure = null;
        return await this.ended(this.core.connectAgent({ agent: this.agent }));
    }

    repeat() {
        return this.resume();
    }

    cancel() {
        this.core.stopAgent({ agent: this.agent });
    }
}

export const CLIENTS = {
    "ag-ui-0": (options) => new AgentSession(options, HttpAgent0),
    "ag-ui-1": (options) => new AgentSession(options, HttpAgent1),
    "copilotkit": (options) => CopilotSession.opened(options),
};
