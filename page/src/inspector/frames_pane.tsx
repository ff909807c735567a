import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { asApiError, type ApiError } from "../api";
import { bytes, count, counted, span } from "../format";
import { Copy } from "../parts/copy";
import { Fault } from "../parts/fault";
import { Icon } from "../parts/icon";
import { VirtualList } from "../parts/virtual_list";
import { getFrames, type Frame } from "./facts";
import { dataOf, eventOf } from "./frames";
import type { Subject } from "./subject";

const ROW_HEIGHT = 26;
const SHOWN_CHARS = 300;
const SCAN_PAGE = 500;
const MOST_MATCHES = 2000;
const TYPES = [
  "assistant_message",
  "reasoning_message",
  "hidden_reasoning_message",
  "tool_call_message",
  "approval_request_message",
  "tool_return_message",
  "event_message",
  "summary_message",
  "error_message",
  "stop_reason",
  "usage_statistics",
];

/** Members that the row shows otherwise, or that most events of a run share. */
const REPEATED = new Set(["message_type", "seq_id", "run_id", "id", "date", "otid", "step_id"]);

/** The raw events of the run: all of them in a list, or those that match. */
export function FramesPane({ subject }: { subject: Subject }) {
  const type = useSignal("");
  const text = useSignal("");
  const isFiltered = type.value !== "" || text.value !== "";
  return (
    <section class="pane frames" aria-label="Raw frames">
      <div class="pane-head">
        <h2>Frames</h2>
        <select aria-label="Type of frames" value={type.value} onChange={(event) => (type.value = event.currentTarget.value)}>
          <option value="">all types</option>
          {TYPES.map((one) => (
            <option key={one} value={one}>
              {one}
            </option>
          ))}
        </select>
        <label class="search">
          <Icon name="search" size={14} />
          <span class="unseen">Find in frames</span>
          <input
            type="search"
            placeholder="Find"
            maxLength={200}
            onKeyDown={(event) => event.key === "Enter" && (text.value = event.currentTarget.value)}
            onInput={(event) => event.currentTarget.value === "" && (text.value = "")}
            onChange={(event) => (text.value = event.currentTarget.value)}
          />
          <kbd aria-hidden="true">/</kbd>
        </label>
      </div>
      {subject.frames.error.value && <Fault error={subject.frames.error.value} again={() => subject.move(subject.seq.peek())} />}
      {isFiltered ? <Matches key={`${type.value} ${text.value}`} subject={subject} type={type.value} text={text.value} /> : <All subject={subject} />}
      <Whole subject={subject} />
    </section>
  );
}

function All({ subject }: { subject: Subject }) {
  const { frames, seq } = subject;
  void frames.version.value;
  const first = frames.first.value;
  const length = Math.max(frames.last.value - first + 1, 0);
  const at = seq.value - first;
  return (
    <VirtualList
      count={length}
      rowHeight={ROW_HEIGHT}
      label="Frames in order"
      at={at < 0 ? undefined : at}
      sticksToEnd={subject.isFollowing.value}
      onRange={(from, to) => {
        if (to > from) void frames.need(first + from, first + to - 1);
      }}
      render={(index) => <Row key={first + index} seq={first + index} frame={frames.get(first + index)} subject={subject} />}
    />
  );
}

function Row({ seq, frame, subject }: { seq: number; frame: Frame | undefined; subject: Subject }) {
  const isCurrent = subject.seq.value === seq;
  const before = subject.frames.get(seq - 1)?.at;
  const ms = frame?.at && before ? Date.parse(frame.at) - Date.parse(before) : null;
  return (
    <div class={`frame ${isCurrent ? "current" : ""}`} role="listitem" aria-current={isCurrent || undefined} onClick={() => subject.move(seq)}>
      <b class="number">{seq}</b>
      {frame && (
        <>
          <span class={`type kind-${kindOf(frame.type)}`}>{shortType(frame.type)}</span>
          <code>{essence(frame).slice(0, SHOWN_CHARS)}</code>
          {ms !== null && ms > 0 && <span class="after number muted">+{span(ms)}</span>}
        </>
      )}
    </div>
  );
}

/** The frames of a type or with a text. The log is read once, page by page; only matches stay. */
function Matches({ subject, type, text }: { subject: Subject; type: string; text: string }) {
  const found = useSignal<Frame[]>([]);
  const read = useSignal(0);
  const error = useSignal<ApiError | null>(null);
  const isDone = useSignal(false);
  const wanted = useRef(text.toLowerCase());
  useEffect(() => {
    const stop = new AbortController();
    const scan = async (): Promise<void> => {
      let after = subject.frames.first.peek() - 1;
      while (found.peek().length < MOST_MATCHES) {
        const page = await getFrames(subject.run, { after_seq: after, limit: SCAN_PAGE }, stop.signal);
        const last = page.items[page.items.length - 1];
        if (!last) break;
        const matches = page.items.filter(
          (one) => (!type || one.type === type) && (!wanted.current || one.frame.toLowerCase().includes(wanted.current)),
        );
        if (matches.length) found.value = [...found.peek(), ...matches];
        after = read.value = last.seq;
        if (last.seq >= page.last_seq) break;
      }
      isDone.value = true;
    };
    scan().catch((raised) => {
      if (!stop.signal.aborted) error.value = asApiError(raised);
    });
    return () => stop.abort();
  }, []);
  const matches = found.value;
  const here = matches.findIndex(({ seq }) => seq >= subject.seq.value);
  const step = (by: number): void => {
    const isOn = matches[here]?.seq === subject.seq.peek();
    const from = here < 0 ? matches.length : here;
    const next = by > 0 ? matches[isOn ? from + 1 : from] : matches[from - 1];
    if (next) subject.move(next.seq);
  };
  return (
    <>
      <div class="matches" role="status">
        <span class="number">
          {count(matches.length)} {matches.length === 1 ? "match" : "matches"} in {counted(read.value, "frame")}
          {isDone.value ? "" : " …"}
        </span>
        <button type="button" class="quiet small" aria-label="Previous match" onClick={() => step(-1)}>
          <Icon name="step-back" size={14} />
        </button>
        <button type="button" class="quiet small" aria-label="Next match" onClick={() => step(1)}>
          <Icon name="step-forward" size={14} />
        </button>
      </div>
      {error.value && <Fault error={error.value} />}
      <VirtualList
        count={matches.length}
        rowHeight={ROW_HEIGHT}
        label="Frames that match"
        at={here < 0 ? undefined : here}
        render={(index) => {
          const frame = matches[index]!;
          return <Row key={frame.seq} seq={frame.seq} frame={frame} subject={subject} />;
        }}
      />
    </>
  );
}

/** The frame of the moment, whole. */
function Whole({ subject }: { subject: Subject }) {
  const isOpen = useSignal(true);
  void subject.frames.version.value;
  const frame = subject.frames.get(subject.seq.value);
  return (
    <div class="whole">
      <div class="whole-head">
        <button type="button" class="quiet small" aria-expanded={isOpen.value} onClick={() => (isOpen.value = !isOpen.value)}>
          <Icon name={isOpen.value ? "chevron-down" : "chevron-right"} size={14} />
          <span class="number">Frame {count(subject.seq.value)}</span>
        </button>
        {frame && (
          <span class="muted number">
            {frame.type} · {bytes(frame.bytes)}
            {frame.at && ` · ${timeOf(frame.at)}`}
          </span>
        )}
        {frame && <Copy text={frame.frame} label="Copy the frame" />}
      </div>
      {isOpen.value && <pre tabIndex={0}>{frame ? frame.frame.trimEnd() : ""}</pre>}
    </div>
  );
}

/** Return the members of an event in which it differs from its neighbours. */
function essence(frame: Frame): string {
  const event = eventOf(frame);
  if (!event) return dataOf(frame.frame);
  const kept = Object.entries(event).filter(([name, value]) => value !== null && !REPEATED.has(name));
  return JSON.stringify(Object.fromEntries(kept));
}

function timeOf(at: string): string {
  return new Date(at).toLocaleTimeString(undefined, { hour: "numeric", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3 });
}

const shortType = (type: string): string => type.replace(/_message$/, "").replace("usage_statistics", "usage");

function kindOf(type: string): string {
  if (/^(tool|approval)/.test(type)) return "tool";
  if (/reasoning/.test(type)) return "thought";
  if (/error/.test(type)) return "error";
  return /^assistant/.test(type) ? "text" : "other";
}
