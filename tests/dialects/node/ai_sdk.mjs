// The clients of the AI SDK against a server: `node ai_sdk.mjs URL AGENTS`, where AGENTS is a JSON object with
// the agent of each scenario. Prints one JSON object with the outcome of each.
import { Chat as Chat5 } from "@ai-sdk/react5";
import { Chat as Chat6 } from "@ai-sdk/react6";
import { Chat as Chat7 } from "@ai-sdk/react7";
import * as ai5 from "ai5";
import * as ai6 from "ai6";
import * as ai7 from "ai7";

import { documented } from "./documented.mjs";

const VERSIONS = { 5: { ...ai5, Chat: Chat5 }, 6: { ...ai6, Chat: Chat6 }, 7: { ...ai7, Chat: Chat7 } };
const [url, agents] = process.argv.slice(2);
let api;
const tools = { where: { description: "Where are you?", inputSchema: { type: "object" } } };

/** Returns a `fetch` whose first body breaks after `frames` frames, as Chromium words it, or ends. */
function cutting(frames, { everyTime = false, breaks = true } = {}) {
    const seen = { requests: [], frames: 0 };
    const cut = async (input, init) => {
        seen.requests.push(`${init?.method ?? "GET"} ${String(input).slice(api.length)}`);
        const response = await fetch(input, init);
        if ((seen.requests.length > 1 && !everyTime) || !response.body) return response;
        const reader = response.body.getReader();
        const decoder = new TextDecoder();
        const encoder = new TextEncoder();
        let left = frames;
        let text = "";
        // A frame at a time, each when the one before was taken: an error drops all that wait.
        const pull = async (controller) => {
            if (left <= 0) {
                await reader.cancel();
                return breaks ? controller.error(new TypeError("network error")) : controller.close();
            }
            while (!text.includes("\n\n")) {
                const { done, value } = await reader.read();
                if (done) return controller.close();
                text += decoder.decode(value, { stream: true });
            }
            const end = text.indexOf("\n\n") + 2;
            controller.enqueue(encoder.encode(text.slice(0, end)));
            text = text.slice(end);
            left -= 1;
            seen.frames += 1;
        };
        const body = new ReadableStream({ pull, cancel: (reason) => reader.cancel(reason) }, { highWaterMark: 0 });
        return new Response(body, { status: response.status, headers: response.headers });
    };
    return Object.assign(cut, { seen });
}

const { replayedFetch } = await documented("ai-sdk.md", "replayedFetch");

function newChat(version, id, { fetch = globalThis.fetch, messages, ...options } = {}) {
    const { Chat, DefaultChatTransport } = VERSIONS[version];
    let number = messages?.length ?? 0;
    return new Chat({
        id,
        messages,
        generateId: () => `m${(number += 1)}`,
        transport: new DefaultChatTransport({
            api,
            fetch: version === "5" ? replayedFetch(fetch) : fetch,
            body: { tools },
        }),
        onError: () => {},
        ...options,
    });
}

const history = async (id) => await (await fetch(`${api}/${id}/messages`)).json();
const plain = (value) => JSON.parse(JSON.stringify(value));

/** Replaces ids by the order in which they come, so that two chats can be compared. */
function comparable(messages) {
    const names = new Map();
    return JSON.parse(
        JSON.stringify(messages).replace(/[0-9a-f]{8}-[0-9a-f-]{27}|call_[\w-]+/g, (id) => {
            if (!names.has(id)) names.set(id, `id ${names.size}`);
            return names.get(id);
        }),
    );
}

function deferred() {
    let resolve;
    const promise = new Promise((done) => (resolve = done));
    return { promise, resolve };
}

const scenarios = {
    async cuts(version) {
        const text = "[think=2][tool=ferry][chunks=3][rate=200]";
        const counting = cutting(Infinity);
        const whole = newChat(version, `whole-${version}`, { fetch: counting });
        await whole.sendMessage({ text });
        const cuts = [];
        for (let k = 1; k < counting.seen.frames - 1; k += 1) cuts.push(k);
        const same = await Promise.all(
            cuts.map(async (k) => {
                const chat = newChat(version, `same-${version}-${k}`, { fetch: cutting(k) });
                await chat.sendMessage({ text });
                const broke = chat.status;
                if (version === "5" && chat.messages.at(-1).role === "assistant") {
                    chat.messages = chat.messages.slice(0, -1); // As docs/ai-sdk.md says.
                }
                await chat.resumeStream();
                return { broke, status: chat.status, messages: comparable(chat.messages) };
            }),
        );
        const reloaded = await Promise.all(
            cuts.map(async (k) => {
                const id = `reloaded-${version}-${k}`;
                await newChat(version, id, { fetch: cutting(k) }).sendMessage({ text });
                const chat = newChat(version, id, { messages: await history(id) });
                await chat.resumeStream();
                return { status: chat.status, messages: comparable(chat.messages) };
            }),
        );
        return {
            whole: comparable(whole.messages),
            history: comparable(await history(whole.id)),
            cuts: cuts.length,
            same,
            reloaded,
        };
    },

    async idle(version) {
        const chat = newChat(version, `idle-${version}`);
        await chat.resumeStream();
        return { status: chat.status, messages: chat.messages };
    },

    async approval(version) {
        const text = "[approve=rm][chunks=1][rate=200]";
        const ask = async (id, fetch) => {
            const finished = [deferred(), deferred()];
            let count = 0;
            const chat = newChat(version, id, {
                fetch,
                sendAutomaticallyWhen:
                    VERSIONS[version].lastAssistantMessageIsCompleteWithApprovalResponses,
                onFinish: () => finished[count++]?.resolve(),
            });
            await chat.sendMessage({ text });
            const part = chat.messages.at(-1).parts.at(-1);
            await chat.addToolApprovalResponse({ id: part.approval.id, approved: true });
            await finished[1].promise;
            return chat;
        };
        const counting = cutting(Infinity, { everyTime: true });
        const whole = await ask(`approved-${version}`, counting);
        const cuts = [];
        for (let k = 1; k < 6; k += 1) cuts.push(k);
        const reloaded = await Promise.all(
            cuts.map(async (k) => {
                const id = `approved-${version}-${k}`;
                let requests = 0;
                const later = cutting(k, { everyTime: true });
                await ask(id, (...request) =>
                    (requests += 1) === 1 ? fetch(...request) : later(...request),
                );
                const chat = newChat(version, id, { messages: await history(id) });
                await chat.resumeStream();
                return { status: chat.status, messages: comparable(chat.messages) };
            }),
        );
        return {
            whole: comparable(whole.messages),
            history: comparable(await history(whole.id)),
            reloaded,
        };
    },

    async clientTool(version) {
        const answered = deferred();
        let finished = 0;
        const chat = newChat(version, `tool-${version}`, {
            sendAutomaticallyWhen: VERSIONS[version].lastAssistantMessageIsCompleteWithToolCalls,
            onToolCall: ({ toolCall }) => {
                const result = { tool: "where", toolCallId: toolCall.toolCallId, output: { at: "Marstal" } };
                if (version === "5") chat.addToolResult(result);
                else chat.addToolOutput(result);
            },
            onFinish: () => (finished += 1) === 2 && answered.resolve(),
        });
        await chat.sendMessage({ text: "[client_tool=where][chunks=1]" });
        await answered.promise;
        return { whole: plain(chat.messages), history: await history(chat.id) };
    },

    async stop(version) {
        const id = `stop-${version}`;
        const chat = newChat(version, id);
        const sending = chat.sendMessage({ text: "[chunks=3][hang=3]" });
        const reading = newChat(version, id);
        while (chat.status !== "streaming") await new Promise((done) => setImmediate(done));
        const resumed = reading.resumeStream();
        const answer = await fetch(`${api}/${id}/stop`, { method: "POST" });
        await Promise.all([sending, resumed]);
        return {
            stopped: Object.values(await answer.json()),
            status: [chat.status, reading.status],
            reason: chat.messages.at(-1).metadata.stop_reason,
            whole: plain(chat.messages),
            history: await history(id),
        };
    },

    async again(version) {
        const chat = newChat(version, `again-${version}`);
        await chat.sendMessage({ text: "one" });
        await chat.sendMessage({ text: "two" });
        const before = plain(chat.messages);
        await chat.regenerate();
        const regenerated = plain(chat.messages);
        const afterwards = await history(chat.id);
        await chat.sendMessage({ text: "changed", messageId: chat.messages[0].id });
        return {
            before,
            regenerated,
            afterwards,
            edited: plain(chat.messages),
            history: await history(chat.id),
        };
    },

    async error(version) {
        const errors = [];
        const chat = newChat(version, `error-${version}`, { onError: (error) => errors.push(error.message) });
        await chat.sendMessage({ text: "[chunks=2][fail=2]" });
        const failed = chat.status;
        const waiting = newChat(version, `busy-${version}`, { onError: (error) => errors.push(error.message) });
        const sending = waiting.sendMessage({ text: "[chunks=1][hang=1]" });
        while (waiting.status !== "streaming") await new Promise((done) => setImmediate(done));
        const second = newChat(version, `busy-${version}`, {
            messages: [{ id: "x", role: "assistant", parts: [] }],
            onError: (error) => errors.push(error.message),
        });
        await second.sendMessage({ text: "me too" });
        await fetch(`${api}/busy-${version}/stop`, { method: "POST" });
        await sending;
        return { failed, errors };
    },
};

async function workflow() {
    const { workflowTransport } = await documented("ai-sdk.md", "workflowTransport");
    console.error = console.warn = () => {}; // It prints every broken connection.
    const read = async (id, fetch) => {
        const parts = [{ type: "text", text: "[think=2][chunks=4]" }];
        const messages = [{ id: "u1", role: "user", parts }];
        const transport = workflowTransport(api, id);
        transport.fetch = fetch;
        const chunks = [];
        const send = { trigger: "submit-message", chatId: id, messages };
        for await (const chunk of await transport.sendMessages(send)) chunks.push(chunk);
        const again = [];
        for await (const chunk of await transport.reconnectToStream({ chatId: id })) again.push(chunk);
        const last = [];
        const tail = { chatId: id, startIndex: -3 };
        for await (const chunk of await transport.reconnectToStream(tail)) last.push(chunk);
        return { chunks: comparable(chunks), again: comparable(again), last: comparable(last) };
    };
    const whole = await read("workflow-whole", fetch);
    const broken = [];
    for (let k = 1; k < whole.chunks.length; k += 1) {
        broken.push(await read(`workflow-${k}`, cutting(k)));
    }
    const ending = cutting(1, { everyTime: true, breaks: false });
    const single = await read("workflow-single", ending);
    return { whole, broken, single, requests: ending.seen.requests, resumed: await resumed() };

    /** A chat whose transport has given up, and then resumes. */
    async function resumed() {
        const transport = workflowTransport(api, "workflow-resumed");
        const cut = cutting(6);
        let isDown = false;
        transport.fetch = async (...request) => {
            if (isDown) throw new TypeError("fetch failed");
            isDown = true; // After the message.
            return await cut(...request);
        };
        const chat = newChat("7", "workflow-resumed", { transport });
        await chat.sendMessage({ text: "[think=2][chunks=4]" });
        const broke = chat.status;
        transport.fetch = fetch;
        await chat.resumeStream();
        return { broke, status: chat.status, parts: chat.messages.at(-1).parts.map(({ type, text }) => [type, text]) };
    }
}

const outcomes = {};
for (const [scenario, agentId] of Object.entries(JSON.parse(agents))) {
    api = `${url}/ai-sdk/${agentId}/chat`;
    if (scenario === "workflow") {
        outcomes[scenario] = await workflow();
        continue;
    }
    const versions = scenario === "approval" ? ["6", "7"] : ["5", "6", "7"];
    const outcome = versions.map(async (one) => [one, await scenarios[scenario](one)]);
    outcomes[scenario] = Object.fromEntries(await Promise.all(outcome));
}
process.stdout.write(JSON.stringify(outcomes), () => process.exit(0));
