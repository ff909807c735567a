import { useSignal } from "@preact/signals";
import { api, asApiError, type ApiError } from "../api";
import { age, clock } from "../format";
import { Copy } from "../parts/copy";
import { Dialog } from "../parts/dialog";
import { Fault } from "../parts/fault";
import { Icon } from "../parts/icon";
import { Lamp } from "../parts/lamp";
import { may, server, signInWith } from "../session";
import { toast } from "../toasts";
import { Card, More, Scroller } from "./card";
import type { Key } from "./facts";
import { usePaged } from "./paged";

const SCOPES = ["read", "send", "admin", "operator"] as const;
const DAY_MS = 86_400_000;
const LIVES: Array<[text: string, days: number]> = [
  ["never", 0],
  ["in 1 day", 1],
  ["in 30 days", 30],
  ["in 90 days", 90],
  ["in 1 year", 365],
];

export function KeysCard() {
  const { polled, items, hasMore, more } = usePaged<Key>("v1/admin/keys", ({ id }) => id);
  const isMaking = useSignal(false);
  const revoking = useSignal<Key | null>(null);
  const revoke = async (key: Key): Promise<void> => {
    revoking.value = null;
    try {
      await api(`v1/admin/keys/${encodeURIComponent(key.id)}`, { method: "DELETE" });
      toast(`The key ${key.name} stops working within 5 s.`);
    } catch (error) {
      toast(asApiError(error).detail, "bad");
    }
    polled.again();
  };
  const create = (
    <button type="button" class="small" onClick={() => (isMaking.value = true)}>
      <Icon name="plus" size={14} /> New key
    </button>
  );
  return (
    <>
      <Card title="Keys" polled={polled} acts={create}>
        {() =>
          items.value.length === 0 ? (
            <p class="muted">No keys: everyone on this machine may use the server.</p>
          ) : (
            <>
              <Scroller label="Keys">
                <table>
                  <thead>
                    <tr>
                      <th scope="col">Name</th>
                      <th scope="col">State</th>
                      {may("operator") && <th scope="col">Tenant</th>}
                      <th scope="col">Scopes</th>
                      <th scope="col" class="number">Used</th>
                      <th scope="col" class="number">Expires</th>
                      <th scope="col">
                        <span class="unseen">Revoke</span>
                      </th>
                    </tr>
                  </thead>
                  <tbody>
                    {items.value.map((key) => (
                      <tr key={key.id}>
                        <th scope="row" title={key.id}>
                          {key.name} <code class="muted">{key.prefix}…</code>
                        </th>
                        <td>
                          <Lamp kind={key.state === "active" ? "ok" : "off"}>{key.state}</Lamp>
                        </td>
                        {may("operator") && (
                          <td class="short" title={key.tenant}>
                            {key.tenant}
                          </td>
                        )}
                        <td>{key.scopes.join(", ")}</td>
                        <td class="number" title={key.last_used_at ? clock(key.last_used_at) : undefined}>
                          {key.last_used_at ? age(key.last_used_at) : "never"}
                        </td>
                        <td class="number">{key.expires_at ? clock(key.expires_at) : "never"}</td>
                        <td class="number">
                          {key.state === "active" && (
                            <button type="button" class="quiet small" aria-label={`Revoke ${key.name}`} title="Revoke" onClick={() => (revoking.value = key)}>
                              <Icon name="trash-2" size={14} />
                            </button>
                          )}
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
      {isMaking.value && <NewKey onClose={() => ((isMaking.value = false), polled.again())} />}
      {revoking.value && (
        <Dialog title={`Revoke ${revoking.value.name}?`} onClose={() => (revoking.value = null)}>
          <form onSubmit={(event) => (event.preventDefault(), void revoke(revoking.value!))}>
            <p>Its clients are refused within 5 s, its open streams end, and the stream tokens that it issued stop working.</p>
            <div class="choices">
              <button type="button" onClick={() => (revoking.value = null)}>
                Keep it
              </button>
              <button type="submit" class="primary">
                Revoke
              </button>
            </div>
          </form>
        </Dialog>
      )}
    </>
  );
}

function NewKey({ onClose }: { onClose: () => void }) {
  const error = useSignal<ApiError | null>(null);
  const made = useSignal<{ secret: string; name: string } | null>(null);
  const isOpen = server.value?.open ?? false;
  const submit = async (event: SubmitEvent): Promise<void> => {
    event.preventDefault();
    const given = new FormData(event.currentTarget as HTMLFormElement);
    const days = Number(given.get("life"));
    const body = {
      name: String(given.get("name")).trim(),
      scopes: given.getAll("scope"),
      ...(days ? { expires_at: new Date(Date.now() + days * DAY_MS).toISOString() } : {}),
      ...(given.get("tenant") ? { tenant: String(given.get("tenant")).trim() } : {}),
    };
    try {
      made.value = await api<{ secret: string; name: string }>("v1/admin/keys", { method: "POST", body });
    } catch (raised) {
      error.value = asApiError(raised);
    }
  };
  if (made.value) {
    const { secret, name } = made.value;
    return (
      <Dialog title={`Key ${name}`} onClose={onClose}>
        <form onSubmit={(event) => (event.preventDefault(), onClose())}>
          <p>Copy it now: the server keeps only its hash.</p>
          <div class="command">
            <pre tabIndex={0}>{secret}</pre>
            <Copy text={secret} label="Copy the key" />
          </div>
          <div class="choices">
            {isOpen && (
              <button type="button" onClick={() => (signInWith(secret), onClose())}>
                Use it in this tab
              </button>
            )}
            <button type="submit" class="primary">
              Done
            </button>
          </div>
        </form>
      </Dialog>
    );
  }
  return (
    <Dialog title="New key" onClose={onClose}>
      <form onSubmit={submit}>
        {isOpen && <p class="hint">With the first key the server asks everyone for one, this page too.</p>}
        <label>
          Name
          <input name="name" required maxLength={200} placeholder="the application's" autocomplete="off" />
        </label>
        <fieldset>
          <legend>Scopes</legend>
          {SCOPES.filter((scope) => may(scope)).map((scope) => (
            <label key={scope}>
              <input type="checkbox" name="scope" value={scope} defaultChecked={scope !== "operator"} /> {scope}
            </label>
          ))}
        </fieldset>
        <label>
          Expires
          <select name="life">
            {LIVES.map(([text, days]) => (
              <option key={days} value={days}>
                {text}
              </option>
            ))}
          </select>
        </label>
        {may("operator") && (
          <label>
            Tenant
            <input name="tenant" placeholder="this one; or an id, or new" autocomplete="off" spellcheck={false} />
          </label>
        )}
        {error.value && <Fault error={error.value} />}
        <div class="choices">
          <button type="button" onClick={onClose}>
            Cancel
          </button>
          <button type="submit" class="primary">
            Create
          </button>
        </div>
      </form>
    </Dialog>
  );
}
