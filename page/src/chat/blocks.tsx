/** The parts of a conversation on the screen. */

import { useComputed, useSignal, type Signal } from "@preact/signals";
import { useEffect, useMemo, useState } from "preact/hooks";
import { counted, span } from "../format";
import { Icon } from "../parts/icon";
import { Markdown } from "../parts/markdown";
import { may } from "../session";
import type { Thread } from "./thread";
import type { Block, Cut, ImageSource } from "./transcript";

type Of<K extends Block["kind"]> = Extract<Block, { kind: K }>;

export function BlockView({ block, thread }: { block: Block; thread: Thread }) {
  switch (block.kind) {
    case "user":
      return <User block={block} />;
    case "answer":
      return <Answer block={block} />;
    case "reasoning":
      return <Reasoning block={block} />;
    case "tool":
      return <Tool block={block} thread={thread} />;
    case "note":
      return (
        <p class={`block note ${block.tone}`}>
          {block.tone === "bad" && <Icon name="circle-alert" />}
          <span>
            {block.text} {block.code && <code>{block.code}</code>}
          </span>
        </p>
      );
    case "cut":
      return <CutLine cut={block.cut.value} />;
  }
}

function Answer({ block }: { block: Of<"answer"> }) {
  const marks = useComputed(() => block.marks.value.map(({ at, cut }) => ({ at, key: cut, show: () => <MarkedCut cut={cut} /> })));
  return (
    <div class="block answer">
      <Markdown text={block.text} isWhole={block.isWhole} marks={marks} />
    </div>
  );
}

const MarkedCut = ({ cut }: { cut: Signal<Cut> }) => <CutLine cut={cut.value} />;

function User({ block }: { block: Of<"user"> }) {
  return (
    <div class="block user">
      <div class="bubble">
        {block.images.map((source, at) => (
          <Picture key={at} source={source} />
        ))}
        {block.text && <p>{block.text}</p>}
      </div>
    </div>
  );
}

/** Return an address of the image's bytes, or null if they are elsewhere. */
function useBlob(source: ImageSource): string | null {
  const url = useMemo(() => {
    if (source.type !== "base64" || !source.data || !/^image\/(png|jpeg|gif|webp)$/.test(source.media_type ?? "")) return null;
    try {
      const bytes = Uint8Array.from(atob(source.data), (one) => one.charCodeAt(0));
      return URL.createObjectURL(new Blob([bytes], { type: source.media_type! }));
    } catch {
      return null;
    }
  }, [source]);
  useEffect(() => () => void (url && URL.revokeObjectURL(url)), [url]);
  return url;
}

/** An image of the conversation's own content. One that is elsewhere is a link. */
export function Picture({ source }: { source: ImageSource }) {
  const url = useBlob(source);
  if (url) return <img class="picture" src={url} alt="Attached by the user" />;
  if (source.url && /^https?:/.test(source.url)) {
    return (
      <a class="image-link" href={source.url} target="_blank" rel="noopener noreferrer">
        {source.url.slice(0, 100)}
      </a>
    );
  }
  return <p class="muted">(an image)</p>;
}

function Reasoning({ block }: { block: Of<"reasoning"> }) {
  const isOpen = useSignal(false);
  const took = block.tookMs.value;
  const isWhole = block.isWhole.value;
  return (
    <details class="block reasoning" onToggle={(event) => (isOpen.value = event.currentTarget.open)}>
      <summary>
        <Icon name="chevron-right" size={14} />
        {isWhole ? "Reasoning" : "Reasoning…"}
        {took !== null && <span class="muted number"> {span(took)}</span>}
      </summary>
      {isOpen.value && <Markdown text={block.text} isWhole={block.isWhole} />}
    </details>
  );
}

function Tool({ block, thread }: { block: Of<"tool">; thread: Thread }) {
  const result = block.result.value;
  const decision = block.decision.value;
  const waits = block.asks.value && !result && !decision;
  const isWaiting = waits && !thread.isActive.value;
  const state = result
    ? result.status === "success"
      ? "returned"
      : decision === "denied"
        ? "denied"
        : "failed"
    : isWaiting
      ? "waits for you"
      : (decision ?? "running");
  return (
    <div class={`block tool ${isWaiting ? "waits" : ""}`}>
      <div class="call">
        <Icon name="wrench" />
        <p>
          <b>{block.name.value || "tool"}</b>
          <code class="arguments">{compact(block.args.value)}</code>
        </p>
        <span class={`badge ${result ? (result.status === "success" ? "good" : "bad") : isWaiting ? "warn" : ""}`}>{state}</span>
      </div>
      {isWaiting && may("send") && <Decide block={block} thread={thread} />}
      {(result || block.args.value.length > 80) && (
        <details>
          <summary>
            <Icon name="chevron-right" size={14} /> {result ? "Arguments and result" : "Arguments"}
          </summary>
          <pre tabIndex={0}>{pretty(block.args.value)}</pre>
          {result && <pre tabIndex={0}>{pretty(result.text)}</pre>}
        </details>
      )}
    </div>
  );
}

/** Decisions of calls that wait together, until all of them are there: the server takes them at once. */
const decided = new WeakMap<Thread, Map<string, Record<string, unknown>>>();

function Decide({ block, thread }: { block: Of<"tool">; thread: Thread }) {
  const [chosen, setChosen] = useState("");
  const [answer, setAnswer] = useState<string | null>(null);
  const pending = thread.transcript.pending();
  const decide = (label: string, decision: Record<string, unknown>): void => {
    const all = decided.get(thread) ?? new Map<string, Record<string, unknown>>();
    decided.set(thread, all);
    all.set(block.callId, { tool_call_id: block.callId, ...decision });
    setChosen(label);
    if (pending.every(({ callId }) => all.has(callId))) {
      decided.delete(thread);
      thread.decide([...all.values()]);
    }
  };
  const name = block.name.value;
  return (
    <div class="decide">
      {answer === null ? (
        <>
          <button type="button" class="primary small" aria-label={`Approve ${name}`} onClick={() => decide("approved", { type: "approval", approve: true })}>
            <Icon name="check" size={14} /> Approve
          </button>
          <button type="button" class="danger small" aria-label={`Deny ${name}`} onClick={() => decide("denied", { type: "approval", approve: false })}>
            <Icon name="x" size={14} /> Deny
          </button>
          <button type="button" class="quiet small" onClick={() => setAnswer("")}>
            Answer for the tool…
          </button>
          {chosen && pending.length > 1 && <span class="muted">{chosen}; {counted(pending.length, "call")} decide together</span>}
        </>
      ) : (
        <form
          onSubmit={(event) => {
            event.preventDefault();
            decide("answered", { type: "tool", status: "success", tool_return: answer });
          }}
        >
          <textarea aria-label={`Result of ${name}`} rows={2} value={answer} onInput={(event) => setAnswer(event.currentTarget.value)} />
          <button type="submit" class="primary small">Send the result</button>
          <button type="button" class="quiet small" onClick={() => setAnswer(null)}>Cancel</button>
        </form>
      )}
    </div>
  );
}

export function CutLine({ cut }: { cut: Cut }) {
  const { seq, ms, missed, isOver, isMeant } = cut;
  const after = `${(ms / 1000).toFixed(1)} s`;
  return (
    <div class={`block cut ${isOver ? "over" : ""}`}>
      <span class="number">
        {isMeant ? "cut" : "connection lost"} at seq {seq}
        {isOver
          ? missed === null
            ? ` · reattached after ${after}`
            : ` · reattached after ${after}, ${counted(missed, "event")}`
          : ` · ${after}${missed === null ? "" : ` · ${counted(missed, "event")} missing`}`}
      </span>
    </div>
  );
}

function compact(args: string): string {
  const text = args.replace(/\s+/g, " ").trim();
  return text.length > 80 ? `${text.slice(0, 79)}…` : text;
}

function pretty(text: string): string {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" ? JSON.stringify(value, null, 2) : text;
  } catch {
    return text;
  }
}
