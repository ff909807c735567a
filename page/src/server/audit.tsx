import { clock, shortId } from "../format";
import { may } from "../session";
import { Card, More, Scroller } from "./card";
import type { AuditEntry } from "./facts";
import { usePaged } from "./paged";

/** The acts that gave rights or destroyed data. */
export function AuditCard() {
  const { polled, items, hasMore, more } = usePaged<AuditEntry>("v1/admin/audit", ({ id }) => id);
  return (
    <Card title="Audit log" polled={polled}>
      {() =>
        items.value.length === 0 ? (
          <p class="muted">Nothing yet: keys, tokens, cancelled runs and everything deleted will be here.</p>
        ) : (
          <>
            <Scroller label="Audit log">
              <table>
                <thead>
                  <tr>
                    <th scope="col">Time</th>
                    <th scope="col">Act</th>
                    <th scope="col">Subject</th>
                    <th scope="col">By</th>
                    {may("operator") && <th scope="col">Tenant</th>}
                    <th scope="col">Detail</th>
                  </tr>
                </thead>
                <tbody>
                  {items.value.map((one) => (
                    <tr key={one.id}>
                      <td class="number">{clock(one.at)}</td>
                      <td>{one.action}</td>
                      <td title={one.subject ?? undefined}>{one.subject ? shortId(one.subject) : "–"}</td>
                      <td title={one.actor.id ?? undefined}>
                        {one.actor.name ?? (one.actor.id ? shortId(one.actor.id) : "")} <span class="muted">{one.actor.kind}</span>
                      </td>
                      {may("operator") && (
                        <td class="short" title={one.tenant ?? undefined}>
                          {one.tenant ?? "server"}
                        </td>
                      )}
                      <td class="muted detail">{detailOf(one.detail)}</td>
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

function detailOf(detail: Record<string, unknown>): string {
  const members = Object.entries(detail).filter(([, value]) => value !== null);
  const text = members.map(([name, value]) => `${name.replaceAll("_", " ")} ${typeof value === "object" ? JSON.stringify(value) : value}`).join(", ");
  return text;
}
