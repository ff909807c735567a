import { age, clock, count } from "../format";
import { address } from "../router";
import { may } from "../session";
import { Card, More, Scroller } from "./card";
import type { Tenant } from "./facts";
import { usePaged } from "./paged";

/** The tenants with what they use, and the quotas of the process that answers. */
export function TenantsCard() {
  const { polled, items, hasMore, more } = usePaged<Tenant>("v1/admin/tenants", ({ tenant }) => tenant);
  return (
    <Card title="Tenants and quotas" polled={polled} isWide>
      {() =>
        items.value.length === 0 ? (
          <p class="muted">No tenant has an agent or a key yet. Make an agent in Chat, or a key with reattach keys create.</p>
        ) : (
        <>
          <Scroller label="Tenants">
            <table>
              <thead>
                <tr>
                  <th scope="col">Tenant</th>
                  <th scope="col" class="number">Active runs</th>
                  <th scope="col" class="number">Runs, 24 h</th>
                  <th scope="col" class="number">Tokens, 24 h</th>
                  <th scope="col" class="number">Agents</th>
                  <th scope="col" class="number">Conversations</th>
                  <th scope="col" class="number">Keys</th>
                  <th scope="col" class="number">Last run</th>
                  <th scope="col">Quotas</th>
                </tr>
              </thead>
              <tbody>
                {items.value.map((one) => (
                  <tr key={one.tenant}>
                    <th scope="row" title={one.tenant}>{may("operator") ? <a href={address(["runs"], { tenant: one.tenant })}>{one.tenant}</a> : one.tenant}</th>
                    <td class="number">{count(one.active_runs)}</td>
                    <td class="number">{count(one.runs_last_day)}</td>
                    <td class="number" title="Prompt and completion tokens of the last 24 hours">
                      {count(one.prompt_tokens_last_day)} → {count(one.completion_tokens_last_day)}
                    </td>
                    <td class="number">{count(one.agents)}</td>
                    <td class="number">{count(one.conversations)}</td>
                    <td class="number">{count(one.keys)}</td>
                    <td class="number" title={one.last_run_at ? clock(one.last_run_at) : undefined}>
                      {one.last_run_at ? age(one.last_run_at) : "–"}
                    </td>
                    <td>
                      <Quotas one={one} />
                    </td>
                  </tr>
                ))}
              </tbody>
            </table>
          </Scroller>
          <More isShown={hasMore.value} onClick={() => void more()} />
        </>
        )
      }
    </Card>
  );
}

function Quotas({ one }: { one: Tenant }) {
  const limited = one.quotas.filter(({ limit }) => limit !== null);
  if (!limited.length) return <span class="muted">no limits</span>;
  return (
    <ul class="quotas">
      {limited.map(({ name, used, limit }) => {
        const text = used === null ? `up to ${count(limit!)}` : `${count(used)} of ${count(limit!)}`;
        return (
          <li key={name}>
            <span>{name.replaceAll("_", " ").replace(/\bmib\b/, "MiB")}</span>
            {used !== null && <meter min={0} max={limit!} high={limit! * 0.8} optimum={0} value={used} aria-label={`${name}: ${text}`} />}
            <span class="number muted">{text}</span>
          </li>
        );
      })}
    </ul>
  );
}
