import { useComputed, useSignal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";
import { asApiError, type ApiError } from "../api";
import { Transcript } from "../chat/transcript";
import { clock, count, counted } from "../format";
import { copyText, Id } from "../parts/copy";
import { Empty } from "../parts/empty";
import { Fault } from "../parts/fault";
import { Icon } from "../parts/icon";
import { RunStatus } from "../parts/lamp";
import { Stale } from "../parts/stale";
import { usePolled } from "../polling";
import { address, route } from "../router";
import { isActive } from "../runs/list";
import { may } from "../session";
import { say, toast } from "../toasts";
import { AnswerPane, Blocks } from "./answer_pane";
import { Choose } from "./choose";
import { cancelRun, getFacts, getFrames, getMessages, getTimeline, problemOf, type RunFacts } from "./facts";
import { FramesPane } from "./frames_pane";
import { Lanes } from "./lanes";
import { HappenedPanel, ReadersPanel, WorkPanel } from "./panels";
import { Subject } from "./subject";

const LOOK_MS = 1000;
const ENDED_MS = 10_000;
const FAR = 100;
const TABS = ["Answer", "Frames", "Readers", "Events"] as const;

/** One run, as of any of its events. */
export function InspectorView() {
  const run = route.value.path[1];
  return run ? <Run key={run} run={run} /> : <Choose />;
}

function Run({ run }: { run: string }) {
  const activity = useSignal(true);
  const facts = usePolled((stop) => getFacts(run, stop), activity.value ? LOOK_MS : ENDED_MS, run);
  const found = facts.data.value;
  const isRunning = found ? isActive(found) : true;
  useEffect(() => {
    activity.value = isRunning;
  }, [isRunning]);
  const error = facts.error.value;
  if (!found) {
    if (!error) return <div class="inspector" aria-busy="true" />;
    return error.status === 404 || error.status === 400 ? <NotHere run={run} error={error} /> : <div class="inspector"><Stale polled={facts} /></div>;
  }
  if (found.log === "deleted" || found.log === "lost") return <Gone facts={found} />;
  return (
    <>
      <Stale polled={facts} />
      <Look facts={found} again={facts.again} />
    </>
  );
}

function NotHere({ run, error }: { run: string; error: ApiError }) {
  return (
    <div class="inspector">
      <Empty title="This run is not here">
        <p>
          <code>{run}</code> {error.status === 400 ? "is not the id of a run." : "does not exist, or is another tenant's."}
        </p>
        <Fault error={error} />
        <p>
          <a href={address(["runs"])}>Show the runs that are here</a>
        </p>
      </Empty>
    </div>
  );
}

/** A run whose events were deleted: its messages stay. */
function Gone({ facts, error }: { facts: RunFacts; error?: ApiError }) {
  const messages = usePolled((stop) => getMessages(facts.id, stop), null, facts.id);
  const transcript = useComputed(() => {
    const made = new Transcript();
    for (const item of messages.data.value ?? []) made.absorb(item, false);
    made.prepend([]);
    return made;
  });
  const expired = facts.log_deleted_at ?? error?.body.expired_at;
  return (
    <div class="inspector">
      <Head facts={facts} />
      <p class="gone" role="status">
        <Icon name="clock" /> {facts.log === "lost" ? "The log of this run is lost" : "The events of this run are past their retention"}
        {facts.log !== "lost" && typeof expired === "string" && ` and were deleted ${clock(expired)}`}. Its messages are below.
      </p>
      <Stale polled={messages} />
      <section class="pane answer-pane" aria-label="Messages">
        <div class="pane-head">
          <h2>Messages</h2>
        </div>
        <Blocks transcript={transcript} problem={problemOf(facts)} />
      </section>
      <div class="panels">
        <HappenedPanel facts={facts} onPick={() => {}} />
        <WorkPanel facts={facts} onPick={() => {}} />
      </div>
    </div>
  );
}

function Head({ facts, children }: { facts: RunFacts; children?: preact.ComponentChildren }) {
  const attempt = facts.attempt_list[facts.attempt_list.length - 1];
  return (
    <div class="run-head">
      <h1>
        <span class="unseen">Run </span>
        <Id id={facts.id} />
      </h1>
      <RunStatus run={facts} />
      {attempt && (
        <span class="muted">
          attempt {attempt.number}
          {facts.worker !== null && ` of worker ${facts.worker}`}
          {attempt.token !== null && ` (token ${attempt.token})`}
        </span>
      )}
      <div class="run-acts">{children}</div>
    </div>
  );
}

function Look({ facts, again }: { facts: RunFacts; again: () => void }) {
  const { id } = facts;
  const subject = useMemo(() => new Subject(id, again), [id]);
  const gone = useSignal<ApiError | null>(null);
  const tab = useSignal<(typeof TABS)[number]>("Answer");
  const active = isActive(facts);
  useEffect(() => {
    const begin = async (): Promise<void> => {
      const wanted = wantedSeq();
      if (wanted === null && active) return subject.follow();
      const { first_seq, last_seq } = await getFrames(id, { limit: 1 });
      subject.frames.extend(first_seq, last_seq);
      // The user may have been faster.
      if (subject.seq.peek() === 0) go(subject, wanted ?? last_seq);
    };
    begin().catch((error) => {
      const one = asApiError(error);
      if (one.status === 410) gone.value = one;
      else subject.frames.error.value = one;
    });
    return () => subject.close();
  }, [subject]);
  // A link to another moment of the same run.
  const wanted = route.value.params.seq;
  useEffect(() => {
    const seq = wantedSeq();
    if (seq !== null && seq !== subject.seq.peek() && subject.frames.last.peek()) go(subject, seq);
  }, [wanted]);
  useEffect(() => {
    if (facts.last_seq) subject.extend(facts.last_seq);
  }, [facts.last_seq]);
  useKeys(subject, active);
  if (gone.value) return <Gone facts={facts} error={gone.value} />;
  return (
    <div class={`inspector tab-${tab.value.toLowerCase()}`}>
      <Acts facts={facts} subject={subject} again={again} />
      <Slider subject={subject} isActive={active} />
      <Times facts={facts} subject={subject} isActive={active} />
      <div class="pane-tabs" role="tablist" aria-label="Panes">
        {TABS.map((name) => (
          <button key={name} type="button" role="tab" aria-selected={tab.value === name} onClick={() => (tab.value = name)}>
            {name}
          </button>
        ))}
      </div>
      <div class="panes">
        <AnswerPane subject={subject} facts={facts} />
        <FramesPane subject={subject} />
      </div>
      <div class="panels">
        <ReadersPanel facts={facts} onPick={(seq) => subject.move(seq)} />
        <HappenedPanel facts={facts} onPick={(seq) => subject.move(seq)} />
        <WorkPanel facts={facts} onPick={(seq) => subject.move(seq)} />
      </div>
    </div>
  );
}

/** Return the event that the address names. */
function wantedSeq(): number | null {
  const { seq } = route.peek().params;
  if (seq === undefined) return null;
  if (/^\d+$/.test(seq)) return Number(seq);
  toast(`"${seq.slice(0, 40)}" in the address is no number of an event.`, "bad");
  return null;
}

/** Go to an event of a link, and say so if the log does not have it. */
function go(subject: Subject, seq: number): void {
  const first = subject.frames.first.peek();
  const last = subject.frames.last.peek();
  if (seq > last) toast(`The run has no event ${count(seq)}. Event ${count(last)} is its last one${last ? "" : " so far"}.`);
  else if (seq < first && last >= first) toast(`Event ${count(seq)} is not in the log, which begins with event ${count(first)}.`);
  subject.move(seq);
}

function Acts({ facts, subject, again }: { facts: RunFacts; subject: Subject; again: () => void }) {
  const active = isActive(facts);
  const cancel = async (): Promise<void> => {
    try {
      await cancelRun(facts.id);
      toast("The run is being cancelled.");
    } catch (error) {
      toast(asApiError(error).detail, "bad");
    }
    again();
  };
  const copyLink = async (): Promise<void> => {
    const link = new URL(address(["inspector", facts.id], { seq: subject.seq.peek() }), location.href).href;
    if (await copyText(link)) toast(`Copied a link to event ${count(subject.seq.peek())}.`);
  };
  return (
    <Head facts={facts}>
      <StreamState subject={subject} />
      {active && may("cancel") && !facts.cancel_requested_at && (
        <button type="button" class="danger small" onClick={cancel}>
          <Icon name="square" size={13} /> Cancel
        </button>
      )}
      <button type="button" class="small" onClick={copyLink}>
        <Icon name="link" size={14} /> Copy link
      </button>
    </Head>
  );
}

/** The state of the stream, in words for the eyes and for screen readers. */
function StreamState({ subject }: { subject: Subject }) {
  const state = subject.stream.value;
  useEffect(() => {
    if (state?.name === "ended") say(`Answer finished, ${counted(subject.frames.last.peek(), "event")}`);
  }, [state?.name]);
  if (state?.name === "waiting") {
    return (
      <span class="lost">
        <i class="dot" /> connection lost, attempt {state.attempt}
      </span>
    );
  }
  if (state?.name === "failed") return <span class="bad">{state.error.message}</span>;
  if (!subject.isFollowing.value) return null;
  return (
    <span class="live">
      <i class="dot" /> live
    </span>
  );
}

function Slider({ subject, isActive: active }: { subject: Subject; isActive: boolean }) {
  const { seq, frames, isFollowing } = subject;
  const first = Math.min(frames.first.value, frames.last.value);
  const last = frames.last.value;
  const jump = (name: string, icon: string, to: number) => (
    <button type="button" class="quiet small" aria-label={name} title={name} disabled={to === seq.value || !last} onClick={() => subject.move(to)}>
      <Icon name={icon} />
    </button>
  );
  return (
    <div class="slider">
      <label for="seq" class="number">
        seq <b>{count(seq.value)}</b>
      </label>
      <input
        id="seq"
        type="range"
        min={first}
        max={last}
        value={seq.value}
        disabled={!last}
        aria-valuetext={`event ${seq.value} of ${last}`}
        onInput={(event) => subject.move(Number(event.currentTarget.value))}
      />
      <span class="number muted">{count(last)}</span>
      {jump("First event", "skip-back", first)}
      {jump("Event before", "step-back", Math.max(seq.value - 1, first))}
      {jump("Event after", "step-forward", Math.min(seq.value + 1, last))}
      {jump("Last event", "skip-forward", last)}
      {active && (
        <button
          type="button"
          class={`small ${isFollowing.value ? "primary" : ""}`}
          aria-pressed={isFollowing.value}
          title="Follow (f)"
          onClick={() => (isFollowing.value ? subject.move(seq.peek()) : subject.follow())}
        >
          <Icon name={isFollowing.value ? "pause" : "play"} size={14} /> Follow
        </button>
      )}
    </div>
  );
}

function Times({ facts, subject, isActive: active }: { facts: RunFacts; subject: Subject; isActive: boolean }) {
  // Its end is asked for once more when the run has ended.
  const timeline = usePolled((stop) => getTimeline(facts.id, stop), active ? 2 * LOOK_MS : null, facts.id);
  if (!timeline.data.value) return timeline.error.value && <Stale polled={timeline} />;
  return <Lanes facts={facts} timeline={timeline.data.value} seq={subject.seq} onPick={(seq) => subject.move(seq)} />;
}

/** `← →` one event, with shift 100; `f` follows; `/` finds. */
function useKeys(subject: Subject, active: boolean): void {
  useEffect(() => {
    const onKey = (event: KeyboardEvent): void => {
      const { target, key } = event;
      const isRange = target instanceof HTMLInputElement && target.type === "range";
      const isTyping = target instanceof HTMLElement && /^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName) && !isRange;
      if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
      const by = event.shiftKey ? FAR : 1;
      if (key === "ArrowLeft") subject.move(subject.seq.peek() - by);
      else if (key === "ArrowRight") subject.move(subject.seq.peek() + by);
      else if (key === "f" && active) {
        if (subject.isFollowing.peek()) subject.move(subject.seq.peek());
        else subject.follow();
      } else if (key === "/") document.querySelector<HTMLInputElement>(".frames input[type=search]")?.select();
      else return;
      event.preventDefault();
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, [subject, active]);
}
