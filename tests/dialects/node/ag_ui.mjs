// The clients of AG-UI and CopilotKit against a server: `node ag_ui.mjs URL AGENTS`, where AGENTS is a JSON object
// with the agent of each scenario. Prints one JSON object with the outcome of each.
import { HttpAgent as HttpAgent1 } from "@ag-ui/client";
import { EventSchema } from "@ag-ui/core/schemas";
import { CopilotKitCore } from "@copilotkit/core";
import { HttpAgent as HttpAgent0 } from "ag-ui-0";

import { documented } from "./documented.mjs";

const VERSIONS = { "0.0.59": HttpAgent0, "1.0.0": HttpAgent1 };
const [url, agents] = process.argv.slice(2);
const ids = JSON.parse(agents);
const LOOK = { name: "look", description: "Look around", parameters: { type: "object", properties: {} } };
const ANSWER = "[think=2][tool=ferry][chunks=2][rate=400]";

// A body that breaks is an unhandled rejection of the client too. Others are kept.
const rejections = [];
process.on("unhandledRejection", (error) => {
    if (error?.message !== "cut") rejections.push(String(error));
});
const warnings = [];
for (const level of ["warn", "error"]) console[level] = (...words) => warnings.push(words.map(String).join(" "));

/** Returns a `fetch` whose first body breaks after `frames` frames, and what it has seen. */
function cutting(frames = Infinity, through = globalThis.fetch) {
    const waiting = new Map();
    const seen = { events: [], bodies: 0, first: (type) => new Promise((resolve) => waiting.set(type, resolve)) };
    const cut = async (input, init) => {
        const response = await through(input, init);
        if (!response.headers.get("content-type")?.startsWith("text/event-stream")) return response;
        seen.bodies += 1;
        let left = seen.bodies === 1 ? frames : Infinity;
        const reader = response.body.getReader();
        const decoder = new TextDecoder();
        let text = "";
        const pull = async (controller) => {
            if (left <= 0) {
                await reader.cancel();
                return controller.error(new Error("cut"));
            }
            while (!text.includes("\n\n")) {
                const { done, value } = await reader.read();
                if (done) return controller.close();
                text += decoder.decode(value, { stream: true });
            }
            const end = text.indexOf("\n\n") + 2;
            const frame = text.slice(0, end);
            text = text.slice(end);
            controller.enqueue(new TextEncoder().encode(frame));
            if (frame.startsWith("data: ")) {
                seen.events.push(JSON.parse(frame.slice(6)));
                waiting.get(seen.events.at(-1).type)?.();
            }
            left -= 1;
        };
        const body = new ReadableStream({ pull, cancel: (reason) => reader.cancel(reason) }, { highWaterMark: 0 });
        return new Response(body, { status: response.status, headers: response.headers });
    };
    return Object.assign(cut, { seen });
}

const ends = (promise) => promise.then(() => "ended", (error) => `failed: ${error?.message ?? error}`);
const says = (content) => ({ id: crypto.randomUUID(), role: "user", content });

/** Replaces ids by the order in which they come, so that two threads can be compared. */
function comparable(messages) {
    const names = new Map();
    return JSON.parse(
        JSON.stringify(messages).replace(/[0-9a-f]{8}-[0-9a-f-]{27}/g, (id) => {
            if (!names.has(id)) names.set(id, `id ${names.size}`);
            return names.get(id);
        }),
    );
}

function newAgent(version, scenario, fetch = cutting()) {
    const agent = new VERSIONS[version]({ url: `${url}/ag-ui/${ids[scenario]}`, fetch });
    return Object.assign(agent, { seen: fetch.seen });
}

/** Returns the events that the schemas of version 1.0 refuse. */
const refused = (events) => events.filter((event) => !EventSchema.safeParse(event).success);

/** Runs, is cut after `frames` frames, and runs again under the same id. */
async function cutRun(version, scenario, begin, frames, options = {}) {
    const agent = newAgent(version, scenario);
    const resume = (await begin(agent)) ?? {};
    agent.fetch = cutting(frames);
    const runId = crypto.randomUUID();
    const broke = await ends(agent.runAgent({ runId, ...resume, ...options }));
    const repaired = await ends(agent.runAgent({ runId, ...resume, ...options }));
    const events = agent.fetch.seen.events;
    return { broke, repaired, messages: agent.messages, events, pending: agent.pendingInterrupts?.length ?? 0 };
}

async function cutEverywhere(version, scenario, begin, options) {
    const whole = newAgent(version, scenario);
    const resume = (await begin(whole)) ?? {};
    const before = whole.seen.events.length;
    await whole.runAgent({ ...resume, ...options });
    const events = whole.seen.events.slice(before);
    const cuts = [];
    for (let k = 1; k < events.length; k += 1) cuts.push(k);
    const joined = await Promise.all(cuts.map((k) => cutRun(version, scenario, begin, k, options)));
    return {
        whole: comparable(whole.messages),
        cuts: joined.map(({ broke, repaired, messages }) => ({ broke, repaired, messages: comparable(messages) })),
        refused: refused([...whole.seen.events, ...joined.flatMap((one) => one.events)]),
    };
}

const scenarios = {
    async cuts(version) {
        return await cutEverywhere(version, "cuts", async (agent) => {
            agent.addMessage(says("Before"));
            await agent.runAgent();
            agent.addMessage(says(ANSWER));
        });
    },

    async interrupt(version) {
        let asked;
        const outcome = await cutEverywhere(version, "interrupt", async (agent) => {
            agent.addMessage(says("[approve=rm][rate=400]"));
            await agent.runAgent();
            const { outcome } = agent.seen.events.at(-1);
            asked = outcome;
            return {
                resume: outcome.interrupts.map(({ id }) => ({
                    interruptId: id,
                    status: "resolved",
                    payload: { approved: true },
                })),
            };
        });
        return { ...outcome, asked: asked.type };
    },

    async clientTool(version) {
        const tools = [LOOK];
        return await cutEverywhere(
            version,
            "clientTool",
            async (agent) => {
                agent.addMessage(says("[client_tool=look][rate=400]"));
                await agent.runAgent({ tools });
                const call = agent.messages.at(-1).toolCalls[0];
                agent.addMessage({ id: crypto.randomUUID(), role: "tool", toolCallId: call.id, content: "A harbour" });
            },
            { tools },
        );
    },

    async abort(version) {
        const agent = newAgent(version, "abort");
        const runId = crypto.randomUUID();
        agent.addMessage(says("[chunks=20][rate=50]"));
        let seen = 0;
        const subscriber = { onTextMessageContentEvent: () => ((seen += 1) === 2 ? agent.abortRun() : undefined) };
        const aborted = await ends(agent.runAgent({ runId }, subscriber));
        const partly = agent.messages.at(-1).content;
        const again = await ends(agent.runAgent({ runId }));
        return { aborted, partly, again, whole: agent.messages.at(-1).content };
    },

    async error(version) {
        const agent = newAgent(version, "error");
        agent.addMessage(says("[fail=1] One two"));
        await ends(agent.runAgent());
        const busy = newAgent(version, "error");
        busy.addMessage(says("[hang=1] One two"));
        const begun = busy.seen.first("TEXT_MESSAGE_CONTENT");
        const hanging = ends(busy.runAgent());
        await begun;
        const second = newAgent(version, "error");
        second.threadId = busy.threadId;
        second.addMessage(says("And?"));
        const refusedRun = await ends(second.runAgent());
        await fetch(`${url}/copilotkit/agent/${ids.error}/stop/${busy.threadId}`, { method: "POST" });
        return {
            failed: agent.seen.events.at(-1),
            refused: refusedRun,
            stopped: await hanging,
            last: busy.seen.events.at(-1),
        };
    },
};

async function docs() {
    const { newAgent, ask } = await documented("ag-ui.md", "ask");
    const agent = newAgent(ids.docs, { url: `${url}/ag-ui/${ids.docs}`, fetch: cutting(5) });
    await ask(agent, ANSWER);
    return agent.messages.at(-1).content;
}

// CopilotKit does nothing without a window.
const listens = { addEventListener() {}, removeEventListener() {} };
globalThis.window = { location: { origin: url, href: url }, ...listens };
globalThis.document = { visibilityState: "visible", ...listens };

const plainFetch = globalThis.fetch;
const cuts = new Map();
globalThis.fetch = (input, init) => {
    const body = typeof init?.body === "string" && init.body.startsWith("{") ? JSON.parse(init.body) : {};
    const cut = /\/(run|connect)$/.test(String(input)) ? cuts.get(body.threadId) : undefined;
    return (cut ?? plainFetch)(input, init);
};

async function newCore() {
    const core = new CopilotKitCore({ runtimeUrl: `${url}/copilotkit`, deferInitialConnection: true });
    const connected = new Promise((resolve, reject) =>
        core.subscribe({
            onRuntimeConnectionStatusChanged: ({ status }) => {
                if (status === "connected") resolve();
                if (status === "error") reject(new Error("CopilotKit is not connected"));
            },
        }),
    );
    core.connect();
    await connected;
    return core;
}

async function copilotRun(frames) {
    const core = await newCore();
    const agent = core.getAgent(ids.copilot);
    agent.threadId = crypto.randomUUID();
    agent.addMessage(says("Before"));
    await core.runAgent({ agent });
    const cut = cutting(frames, plainFetch);
    cuts.set(agent.threadId, cut);
    agent.addMessage(says(ANSWER));
    await ends(core.runAgent({ agent }));
    return { core, agent, cut };
}

async function copilot() {
    const core = await newCore();
    const { agent: whole, cut } = await copilotRun(Infinity);
    const places = [];
    for (let k = 1; k < cut.seen.events.length; k += 1) places.push(k);
    const joined = await Promise.all(
        places.map(async (k) => {
            const { core, agent } = await copilotRun(k);
            const connected = await ends(core.connectAgent({ agent }));
            const other = await newCore();
            const fresh = other.getAgent(ids.copilot);
            fresh.threadId = agent.threadId;
            await other.connectAgent({ agent: fresh });
            return { connected, messages: comparable(agent.messages), reloaded: comparable(fresh.messages) };
        }),
    );
    const stopping = await newCore();
    const agent = stopping.getAgent(ids.copilot);
    agent.threadId = crypto.randomUUID();
    const cutNothing = cutting(Infinity, plainFetch);
    cuts.set(agent.threadId, cutNothing);
    agent.addMessage(says("[hang=1] Wait for me"));
    const begun = cutNothing.seen.first("TEXT_MESSAGE_CONTENT");
    const running = ends(stopping.runAgent({ agent }));
    await begun;
    stopping.stopAgent({ agent });
    return {
        agents: Object.keys(core.agents),
        whole: comparable(whole.messages),
        joined,
        refused: refused(cut.seen.events),
        stopped: await running,
        last: cutNothing.seen.events.at(-1),
    };
}

const outcomes = { docs: docs(), copilot: copilot() };
for (const [name, run] of Object.entries(scenarios)) {
    outcomes[name] = Object.fromEntries(Object.keys(VERSIONS).map((version) => [version, run(version)]));
}

/** Returns the outcomes, which come at the same time. */
async function awaited(value) {
    if (value instanceof Promise) return await value;
    const members = Object.entries(value).map(async ([name, one]) => [name, await awaited(one)]);
    return Object.fromEntries(await Promise.all(members));
}

const all = await awaited(outcomes);
process.stdout.write(JSON.stringify({ ...all, rejections, warnings }), () => process.exit(0));
