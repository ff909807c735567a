import { api } from "../api";
import { clock, count } from "../format";
import { Icon } from "../parts/icon";
import { Lamp } from "../parts/lamp";
import { NeedsScope } from "../parts/missing";
import { usePolled } from "../polling";
import { may } from "../session";
import { say } from "../toasts";
import { Card } from "./card";
import type { Finding, Findings } from "./facts";

const WORDS = { ok: "good", warning: "warning", wrong: "wrong" };

/** What `reattach doctor` says of the stores and settings, and what the audits found. */
export function DoctorCard() {
  if (may("operator")) return <Checks />;
  return (
    <section class="card" aria-label="Doctor">
      <div class="card-head">
        <h2>Doctor</h2>
      </div>
      <NeedsScope detail="The checks concern the whole server. A key with the scope operator shows them." scope="operator" />
    </section>
  );
}

function Checks() {
  const findings = usePolled(async (signal) => {
    const found = await api<Findings>("v1/admin/findings", { signal });
    const bad = found.items.filter(({ level }) => level !== "ok").length;
    say(bad ? `Doctor: ${bad} of ${found.items.length} checks need attention` : "Doctor: all checks are good");
    return found;
  }, null);
  const run = (
    <button type="button" class="small" onClick={findings.again}>
      <Icon name="play" size={13} /> Run
    </button>
  );
  return (
    <Card title="Doctor" polled={findings} acts={run}>
      {({ items, audit, checked_at }) => (
        <>
          {checked_at && <p class="muted hint">Checked {clock(checked_at)}.</p>}
          <ul class="findings">
            {[...items].sort(byLevel).map((one, at) => (
              <li key={at}>
                <Lamp kind={one.level}>
                  {one.check}
                  <span class="unseen">: {WORDS[one.level]}</span>
                </Lamp>
                <span class="detail">
                  {one.detail}
                  {one.level !== "ok" && one.remedy && <span class="remedy">{one.remedy}</span>}
                </span>
              </li>
            ))}
          </ul>
          <h3>Audit</h3>
          {audit.length === 0 ? (
            <p class="muted">Logs and records agree: no contradiction since the processes started.</p>
          ) : (
            <ul class="findings">
              {audit.map(({ process, kind, count: times }) => (
                <li key={`${process} ${kind}`}>
                  <Lamp kind="warning">{kind.replaceAll("_", " ")}</Lamp>
                  <span class="detail number">
                    {count(times)} found and mended <span class="muted">by {process}</span>
                  </span>
                </li>
              ))}
            </ul>
          )}
        </>
      )}
    </Card>
  );
}

const LEVELS = ["wrong", "warning", "ok"];
const byLevel = (a: Finding, b: Finding): number => LEVELS.indexOf(a.level) - LEVELS.indexOf(b.level);
