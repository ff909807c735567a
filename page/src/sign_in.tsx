import { useState } from "preact/hooks";
import { Icon } from "./parts/icon";
import { Fault } from "./parts/fault";
import { clock } from "./format";
import { api, asApiError, type ApiError } from "./api";
import { expiryOf, isToken, server, signIn, signInWith, token, type ServerInfo } from "./session";

/** The form that takes a key or a token. What the views show stays behind it. */
export function SignIn() {
  const [secret, setSecret] = useState("");
  const [error, setError] = useState<ApiError | null>(null);
  const [isAsking, setAsking] = useState(false);
  const [title, why] = refusalOf(token.value);
  const isOfToken = isToken(token.value);
  const isAgain = server.value !== null || !!signIn.value;
  const submit = async (event: Event): Promise<void> => {
    event.preventDefault();
    const before = token.peek();
    setAsking(true);
    token.value = secret.trim();
    try {
      const tenant = server.peek()?.tenant;
      server.value = await api<ServerInfo>("v1/server");
      signInWith(secret.trim());
      // The views still have what the tenant before could see.
      if (tenant !== undefined && tenant !== server.value.tenant) location.reload();
    } catch (raised) {
      token.value = before;
      setError(asApiError(raised));
    } finally {
      setAsking(false);
    }
  };
  return (
    <main class="sign-in">
      <form onSubmit={submit}>
        <img src={new URL("icon.svg", import.meta.url).href} alt="" width="40" height="40" />
        <h1>{signIn.value && isOfToken ? title : isAgain ? "Sign in again" : "Sign in to Reattach"}</h1>
        {signIn.value && <p class="muted">{why}</p>}
        <label for="secret">API key or stream token</label>
        <input
          id="secret"
          type="password"
          autocomplete="off"
          spellcheck={false}
          required
          autofocus
          value={secret}
          onInput={(event) => setSecret(event.currentTarget.value)}
        />
        <button type="submit" class="primary" disabled={isAsking || !secret.trim()}>
          <Icon name="key-round" /> Sign in
        </button>
        {error && <Fault error={error} />}
        <p class="muted hint">
          {!isOfToken && (
            <>
              Create a key with <code>reattach keys create NAME</code>.{" "}
            </>
          )}
          This tab keeps it until it is closed.
        </p>
      </form>
    </main>
  );
}

/** Return what to say of a secret that the server refused: a user of an application has no key to create. */
function refusalOf(secret: string | null): [title: string, why: string] {
  if (!isToken(secret)) return ["", "The server does not accept this key: it is unknown, was revoked, or has expired."];
  const expiry = expiryOf(secret!);
  const again = "Go back to the application that gave you this page, and open it from there again.";
  if (expiry !== null && expiry <= Date.now()) return ["This link has expired", `It was valid until ${clock(expiry)}. ${again}`];
  return ["This link is no longer valid", `The server does not accept its stream token. ${again}`];
}
