import { useComputed, useSignal, useSignalEffect } from "@preact/signals";
import { useEffect, useLayoutEffect, useMemo, useRef } from "preact/hooks";
import { api, latencyMs } from "../api";
import { count } from "../format";
import { Id } from "../parts/copy";
import { Empty } from "../parts/empty";
import { Fault } from "../parts/fault";
import { Icon } from "../parts/icon";
import { usePolled } from "../polling";
import { address, go, route } from "../router";
import { base, may, server, signIn, token } from "../session";
import { keep, load } from "../stored";
import { BlockView } from "./blocks";
import { Composer } from "./composer";
import { LinePanel } from "./line_panel";
import { isActive, listAgents, listConversations, listRuns, titleFrom, type Agent, type Conversation } from "./server";
import { AgentDialog, Sidebar, titleOf, tried } from "./sidebar";
import { QUIET_MS, Thread, type Draft } from "./thread";

const LIST_MS = 15_000;
const RUNS_MS = 2500;

/** Tells the other tabs of this browser that a run began or ended. */
const channel = typeof BroadcastChannel === "undefined" ? null : new BroadcastChannel(`reattach ${base}`);

export function ChatView() {
  const limits = server.value?.token;
  if (limits) return <Only conversation={limits.conversation_id} run={limits.run_id} />;
  return <Everything />;
}

/** The chat of a stream token, which opens one conversation or one run. */
function Only({ conversation, run }: { conversation: string | null; run: string | null }) {
  return (
    <div class="chat alone">
      <Conversing key={conversation ?? run!} conversation={conversation ?? run!} agent={null} title="" onlyRun={run} runs={null} onChange={() => {}} />
    </div>
  );
}

function Everything() {
  const [, agentId, conversationId] = route.value.path[0] === "chat" ? route.value.path : [];
  const agents = usePolled(listAgents, LIST_MS, token.value ?? "");
  const agent = agents.data.value?.find(({ id }) => id === agentId) ?? agents.data.value?.[0] ?? null;
  if (!agents.data.value) {
    return agents.error.value ? <div class="padded"><Fault error={agents.error.value} again={agents.again} /></div> : <Loading />;
  }
  if (!agent) return <NoAgent onChange={agents.again} />;
  return <OfAgent key={agent.id} agents={agents.data.value} agent={agent} conversationId={conversationId ?? null} onAgents={agents.again} />;
}

/** A shape of the page that appears only if it takes long. */
function Loading() {
  return <div class="loading" role="status" aria-label="Loading" />;
}

function NoAgent({ onChange }: { onChange: () => void }) {
  const isAsking = useSignal(false);
  const command = `curl ${base}v1/agents/ -H 'content-type: application/json' \\\n  -d '{"name": "guide"}'`;
  return (
    <Empty title="No agent yet" command={command}>
      <p>An agent has a model, instructions and conversations. Make the first one here, or by the API:</p>
      {may("admin") && (
        <button type="button" class="primary" onClick={() => (isAsking.value = true)}>
          <Icon name="plus" /> Make an agent
        </button>
      )}
      {isAsking.value && <AgentDialog agent={null} onClose={() => (isAsking.value = false)} onChange={onChange} />}
    </Empty>
  );
}

interface OfAgentProperties {
  agents: Agent[];
  agent: Agent;
  conversationId: string | null;
  onAgents: () => void;
}

function OfAgent({ agents, agent, conversationId, onAgents }: OfAgentProperties) {
  const conversations = usePolled((signal) => listConversations(agent.id, signal), LIST_MS, agent.id);
  const runs = usePolled((signal) => listRuns(agent.id, signal), RUNS_MS, agent.id);
  const isMenuOpen = useSignal(false);
  const deleted = useSignal<string[]>([]);
  const list = conversations.data.value?.filter(({ id }) => !deleted.value.includes(id));
  const remembered = load("sessionStorage", `conversation ${agent.id}`);
  const current = conversationId ?? (list?.some(({ id }) => id === remembered) ? remembered : (list?.[0]?.id ?? null));
  const shown = list?.find(({ id }) => id === current);

  useEffect(() => {
    const hear = (): void => void (runs.again(), conversations.again());
    channel?.addEventListener("message", hear);
    return () => channel?.removeEventListener("message", hear);
  }, [runs, conversations]);
  useEffect(() => {
    isMenuOpen.value = false;
    if (current) keep("sessionStorage", `conversation ${agent.id}`, current);
  }, [current]);

  const changed = (): void => {
    runs.again();
    conversations.again();
    channel?.postMessage("runs");
  };
  const begin = (): Promise<void> =>
    tried(async () => {
      const made = await api<Conversation>("v1/conversations/", { method: "POST", query: { agent_id: agent.id }, body: {} });
      conversations.again();
      go(["chat", agent.id, made.id]);
      document.getElementById("message")?.focus();
    });
  const active = new Set(runs.data.value?.filter(isActive).map((run) => run.conversation_id ?? "default"));
  return (
    <div class={`chat ${isMenuOpen.value ? "menu-open" : ""}`}>
      <Sidebar
        agents={agents}
        agent={agent}
        conversations={list ?? []}
        current={current}
        active={active}
        onNew={begin}
        onDeleted={(id) => {
          deleted.value = [...deleted.value, id];
          changed();
        }}
        onChange={() => {
          conversations.again();
          onAgents();
        }}
      />
      <button type="button" class="menu-toggle quiet" aria-label="Conversations" aria-expanded={isMenuOpen.value} onClick={() => (isMenuOpen.value = !isMenuOpen.value)}>
        <Icon name={isMenuOpen.value ? "x" : "menu"} size={18} />
      </button>
      {conversations.error.value && !list ? (
        <div class="padded"><Fault error={conversations.error.value} again={conversations.again} /></div>
      ) : !list || (current && !runs.data.value) ? (
        <Loading />
      ) : current ? (
        <Conversing
          key={current}
          conversation={current}
          agent={agent}
          title={shown ? titleOf(shown) : current === "default" ? "Default conversation" : ""}
          onlyRun={null}
          runs={runs.data.value}
          onChange={changed}
          onFirst={(text) => {
            if (shown && !shown.summary) {
              const summary = titleFrom(text);
              if (summary) void tried(() => api(`v1/conversations/${shown.id}`, { method: "PATCH", body: { summary } }).then(conversations.again));
            }
          }}
        />
      ) : (
        <Start agent={agent} onNew={begin} />
      )}
    </div>
  );
}

function Start({ agent, onNew }: { agent: Agent; onNew: () => void }) {
  return (
    <Empty title={`Talk to ${agent.name}`}>
      <p>Its answers go on when the connection breaks, when this page is reloaded, and when the server is restarted.</p>
      {may("send") && (
        <button type="button" class="primary" onClick={onNew}>
          <Icon name="plus" /> New conversation
        </button>
      )}
    </Empty>
  );
}

interface ConversingProperties {
  conversation: string;
  agent: Agent | null;
  title: string;
  onlyRun: string | null;
  /** The newest runs of the agent; null: unknown. */
  runs: Array<{ id: string; agent_id: string; conversation_id: string | null; status: string; background: boolean; created_at: string }> | null;
  onChange: () => void;
  onFirst?: (text: string) => void;
}

function Conversing({ conversation, agent, title, onlyRun, runs, onChange, onFirst }: ConversingProperties) {
  const mine = runs?.find((run) => (run.conversation_id ?? "default") === conversation && run.background) ?? null;
  const thread = useMemo(() => new Thread(conversation, agent?.id ?? null, onlyRun), []);
  thread.onChange = onChange;
  useEffect(() => {
    void thread.open(mine && isActive(mine) ? mine.id : null);
    return () => thread.close();
  }, [thread]);
  const opened = useRef(mine?.id);
  useEffect(() => {
    // Runs from before this view was opened are in its messages.
    if (mine && (mine.id !== opened.current || isActive(mine)) && thread.isLoaded.peek()) thread.notice(mine.id, isActive(mine));
  }, [mine?.id, mine?.status]);
  const secret = useRef(token.value);
  useEffect(() => {
    if (signIn.value !== null || secret.current === token.value) return;
    secret.current = token.value;
    thread.renew();
  }, [token.value, signIn.value]);

  const send = (draft: Draft): void => {
    if (thread.transcript.blocks.peek().length === 0) onFirst?.(draft.text);
    thread.send(draft);
  };
  return (
    <section class="conversation" aria-label={title || "Conversation"}>
      <header class="head">
        <h2>{agent ? agent.name : "Conversation"}</h2>
        <span class="title muted">{title}</span>
        <Id id={conversation} />
        <Following thread={thread} />
      </header>
      <Log thread={thread} agent={agent} />
      <Lost thread={thread} />
      {thread.error.value && (
        <div class="padded">
          <Fault error={thread.error.value} again={() => thread.again()} />
        </div>
      )}
      {!onlyRun && <Composer thread={thread} onSend={send} />}
      <LinePanel thread={thread} />
    </section>
  );
}

/** The run that is followed, how far, and the way to its moment in the Inspector. */
function Following({ thread }: { thread: Thread }) {
  const run = thread.runId.value;
  if (!run) return null;
  const { name } = thread.state.value;
  const lost = thread.isLossShown.value;
  const isQuiet = name === "live" || thread.lostAt.value > 0;
  const text = !thread.isActive.value ? "ended" : lost ? "reconnecting" : isQuiet ? "live" : name;
  return (
    <span class={`following ${thread.isActive.value ? (lost ? "lost" : "live") : ""}`}>
      <a class="number" href={address(["inspector", run], { seq: thread.seq.value })} title="Show this moment in the Inspector">
        seq {count(thread.seq.value)}
      </a>
      <i class={`dot ${thread.isActive.value && !lost ? "beating" : ""}`} /> {text}
    </span>
  );
}

/** The line under an answer whose connection is lost for some time. */
function Lost({ thread }: { thread: Thread }) {
  const now = useSignal(Date.now());
  const since = thread.lostAt.value;
  useEffect(() => {
    if (!since) return;
    const timer = setInterval(() => (now.value = Date.now()), 200);
    return () => clearInterval(timer);
  }, [since]);
  const state = thread.state.value;
  const until = useMemo(() => (state.name === "waiting" ? Date.now() + state.ms : 0), [state]);
  if (!since || now.value - since < QUIET_MS) return null;
  const goesOn = latencyMs.value === null ? "The answer is continued when the server is back." : "The answer goes on meanwhile.";
  const left = Math.max(until - now.value, 0) / 1000;
  return (
    <div class="lost-line" role="status">
      <Icon name="wifi-off" />
      <span class="number">
        {state.name === "waiting"
          ? `No connection: ${state.reason}. Attempt ${state.attempt + 1} in ${left.toFixed(0)} s. ${goesOn}`
          : "Connecting…"}
      </span>
      <button type="button" class="small" onClick={() => thread.tryNow()}>
        <Icon name="refresh-cw" size={14} /> Try now
      </button>
    </div>
  );
}

const NEAR_PX = 80;
/** How long after a person's last touch a scroll may still come from it. */
const TOUCH_MS = 1000;

function Log({ thread, agent }: { thread: Thread; agent: Agent | null }) {
  const box = useRef<HTMLDivElement>(null);
  const inside = useRef<HTMLDivElement>(null);
  const isAtEnd = useSignal(true);
  const blocks = thread.transcript.blocks;
  const isEmpty = useComputed(() => blocks.value.length === 0);
  useLayoutEffect(() => {
    // Text grows without a change of this component.
    const observer = new ResizeObserver(() => {
      if (isAtEnd.peek()) box.current!.scrollTop = box.current!.scrollHeight;
    });
    observer.observe(inside.current!);
    observer.observe(box.current!);
    return () => observer.disconnect();
  }, []);
  useSignalEffect(() => {
    const last = blocks.value[blocks.value.length - 1];
    if (last?.kind === "user" && thread.isActive.peek() === false) isAtEnd.value = true;
  });
  const touchedAt = useRef(-Infinity);
  const touched = (): void => void (touchedAt.current = performance.now());
  const scrolled = (): void => {
    const { scrollTop, scrollHeight, clientHeight } = box.current!;
    const isNear = scrollHeight - scrollTop - clientHeight < NEAR_PX;
    // Only a person leaves the end; content that grows or shrinks scrolls, too.
    if (isNear || performance.now() - touchedAt.current < TOUCH_MS) isAtEnd.value = isNear;
  };
  const last = blocks.value[blocks.value.length - 1]?.kind ?? "user";
  const isThinking = thread.isActive.value && !thread.isLossShown.value && (last === "user" || last === "tool");
  return (
    <div class="log-frame">
      <div ref={box} class="log" role="log" aria-live="off" aria-label="Messages" tabIndex={0} onScroll={scrolled} onWheel={touched} onTouchMove={touched} onKeyDown={touched} onPointerDown={touched}>
        <div ref={inside} class="log-inside">
          {thread.hasEarlier.value && (
            <button type="button" class="quiet small earlier" onClick={() => tried(() => thread.loadEarlier())}>
              <Icon name="history" size={14} /> Earlier messages
            </button>
          )}
          {!thread.isLoaded.value && !thread.error.value && <Loading />}
          {thread.isLoaded.value && isEmpty.value && !thread.isActive.value && (
            <Empty title={agent ? `Talk to ${agent.name}` : "Nothing here yet"}>
              <p>
                Send a message, and cut the line below while the answer comes.
                {agent?.model?.startsWith("scripted/") && (
                  <>
                    {" "}
                    This model follows directives, such as <code>[think=20][chunks=400][rate=25]</code>.
                  </>
                )}
              </p>
            </Empty>
          )}
          {blocks.value.map((block) => (
            <BlockView key={block.key} block={block} thread={thread} />
          ))}
          {isThinking && (
            <p class="block thinking" aria-hidden="true">
              <i /> <i /> <i />
            </p>
          )}
        </div>
      </div>
      {!isAtEnd.value && (
        <button
          type="button"
          class="to-end small"
          onClick={() => {
            isAtEnd.value = true;
            box.current!.scrollTop = box.current!.scrollHeight;
          }}
        >
          <Icon name="arrow-down" size={14} /> Latest
        </button>
      )}
    </div>
  );
}

