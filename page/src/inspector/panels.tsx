import type { ComponentChildren } from "preact";
import { age, bytes, clock, count, counted, shortId, span } from "../format";
import { Icon } from "../parts/icon";
import { keyCommand } from "../parts/missing";
import { address } from "../router";
import { isActive } from "../runs/list";
import { problemOf, type RunFacts } from "./facts";

interface Properties {
  facts: RunFacts;
  onPick: (seq: number) => void;
}

/** The scope that the lists of the operator's API need. */
export function NeedsAdmin() {
  return (
    <p class="muted hint">
      This needs a key with the scope <code>admin</code>: <code>{keyCommand("admin")}</code>
    </p>
  );
}

/** The clients that read the run at present. */
export function ReadersPanel({ facts, onPick }: Properties) {
  const readers = facts.readers_list;
  return (
    <section class="panel" aria-label="Readers">
      <h2>
        Readers <span class="muted number">{facts.isWhole ? `now: ${count(readers.length)}` : ""}</span>
      </h2>
      {!facts.isWhole ? (
        <NeedsAdmin />
      ) : readers.length === 0 ? (
        <p class="muted">Nobody reads this run now.</p>
      ) : (
        <table>
          <thead>
            <tr>
              <th scope="col">Client</th>
              <th scope="col" class="number">Cursor</th>
              <th scope="col" class="number">Lag</th>
              <th scope="col" class="number">Since</th>
            </tr>
          </thead>
          <tbody>
            {readers.map((one, at) => (
              <tr key={at}>
                <td title={`${one.client || "no name"} by ${one.transport}${one.process ? ` on ${one.process}` : ""}`}>
                  {one.client || "no name"} <span class="muted">{one.transport}</span>
                </td>
                <td class="number">
                  <Seq seq={one.cursor} onPick={onPick} />
                </td>
                <td class={`number ${one.lag_events > 100 ? "bad" : ""}`}>{count(one.lag_events)}</td>
                <td class="number" title={clock(one.since)}>
                  {age(one.since)}
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </section>
  );
}

/** A position in the log that a click shows. */
function Seq({ seq, onPick }: { seq: number; onPick: (seq: number) => void }) {
  return (
    <button type="button" class="seq" title={`Show event ${seq}`} onClick={() => onPick(seq)}>
      {count(seq)}
    </button>
  );
}

interface Happening {
  at: string;
  icon: string;
  tone?: "bad" | "warn" | "good";
  text: ComponentChildren;
  seq?: number | null;
}

/** Everything that happened to the run itself, oldest first. */
export function HappenedPanel({ facts, onPick }: Properties) {
  const list = happenings(facts);
  return (
    <section class="panel" aria-label="What happened">
      <h2>What happened</h2>
      <ol class="happened">
        {list.map(({ at, icon, tone, text, seq }, place) => (
          <li key={place} class={tone}>
            <Icon name={icon} size={14} />
            <span>{text}</span>
            {seq !== null && seq !== undefined && seq > 0 && <Seq seq={seq} onPick={onPick} />}
            <time class="muted number" dateTime={at}>
              {clock(at)}
            </time>
          </li>
        ))}
      </ol>
      {!facts.isWhole && <NeedsAdmin />}
    </section>
  );
}

const INTERRUPTIONS: Record<string, string> = {
  crash: "after a crash",
  handover: "after a handover",
  provider: "after the provider broke off",
};

function happenings(facts: RunFacts): Happening[] {
  const found: Happening[] = [{ at: facts.created_at, icon: "send", text: "sent" }];
  for (const one of facts.attempt_list) {
    const owner = one.owner ? ` by ${one.owner.slice(0, 8)}` : "";
    const token = one.token === null ? "" : ` with token ${one.token}`;
    if (one.number === 1) found.push({ at: one.began_at, icon: "play", text: `attempt 1${owner}${token}` });
    else {
      const way = one.way ? `, continued by ${one.way}` : "";
      const why = one.interruption ? ` ${INTERRUPTIONS[one.interruption] ?? `after: ${one.interruption}`}` : "";
      found.push({ at: one.began_at, icon: "history", tone: "warn", text: `attempt ${one.number}${owner}${token}${way}${why}`, seq: one.first_seq });
    }
  }
  for (const { at, reason, client, cursor } of facts.cut_offs) {
    const text = `${client || "a reader"} was cut off: ${reason.replaceAll("_", " ")}`;
    found.push({ at, icon: "scissors", tone: "bad", text, seq: cursor });
  }
  if (facts.cancel_requested_at) found.push({ at: facts.cancel_requested_at, icon: "square", tone: "warn", text: "cancel requested" });
  if (facts.completed_at) {
    const problem = problemOf(facts);
    const isBad = facts.status === "failed";
    const why = facts.stop_reason ? `: ${facts.stop_reason}` : "";
    found.push({ at: facts.completed_at, icon: isBad ? "circle-alert" : "circle-check", tone: isBad ? "bad" : "good", text: `${facts.status}${why}${problem ? `: ${problem.text}` : ""}` });
  }
  if (facts.log_deleted_at) found.push({ at: facts.log_deleted_at, icon: "trash-2", text: "events deleted" });
  // The times of one moment keep their order.
  return found.sort((a, b) => Date.parse(a.at) - Date.parse(b.at));
}

/** What the run consists of: its sums, model calls and tools. */
export function WorkPanel({ facts, onPick }: Properties) {
  const rows: Array<[string, ComponentChildren]> = [
    ["Agent", facts.agent_name ?? shortId(facts.agent_id)],
    ["Conversation", <a href={address(["chat", facts.agent_id, facts.conversation_id ?? "default"])}>in Chat</a>],
    ["Model", facts.model && <span title={facts.model}>{facts.model}</span>],
    ["Events", facts.events === null ? null : `${count(facts.events)}${facts.bytes === null ? "" : ` · ${bytes(facts.bytes)}`}`],
    ["Tokens", facts.usage && `${count(facts.usage.prompt_tokens)} → ${count(facts.usage.completion_tokens)}`],
    ["Rate", facts.events_per_second === null ? null : `${facts.events_per_second.toFixed(1)}/s`],
    ["First event", facts.first_event_seconds === null ? null : span(facts.first_event_seconds * 1000)],
    ["Took", facts.completed_at && span(Date.parse(facts.completed_at) - Date.parse(facts.created_at))],
    ["Owner", isActive(facts) && facts.owner ? <span title={facts.owner}>{facts.owner.slice(0, 8)}</span> : null],
  ];
  return (
    <section class="panel" aria-label="Work">
      <h2>
        Work <span class="muted">now</span>
      </h2>
      <dl>
        {rows.map(([name, value]) =>
          value === null || value === undefined ? null : (
            <div key={name}>
              <dt>{name}</dt>
              <dd>{value}</dd>
            </div>
          ),
        )}
      </dl>
      {facts.tool_calls.length > 0 && (
        <table>
          <caption>{counted(facts.tool_calls.length, "tool call")}</caption>
          <tbody>
            {facts.tool_calls.map((call) => (
              <tr key={call.id}>
                <td>{call.name}</td>
                <td class={call.status === "error" ? "bad" : ""}>{(call.status ?? "running").replaceAll("_", " ")}</td>
                <td class="number">{call.began_seq !== null && <Seq seq={call.began_seq} onPick={onPick} />}</td>
                <td class="number">{call.began_at && call.ended_at && span(Date.parse(call.ended_at) - Date.parse(call.began_at))}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
      {facts.steps.length > 0 && (
        <table>
          <caption>{counted(facts.steps.length, "step")}</caption>
          <tbody>
            {facts.steps.map((step) => (
              <tr key={step.id}>
                <td>{step.model}</td>
                <td class="number" title="Prompt and completion tokens">
                  {step.usage && `${count(step.usage.prompt_tokens ?? 0)} → ${count(step.usage.completion_tokens ?? 0)}`}
                </td>
                <td class="number">{step.began_at && step.ended_at && span(Date.parse(step.ended_at) - Date.parse(step.began_at))}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </section>
  );
}
