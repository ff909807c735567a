import type { FunctionComponent } from "preact";
import { useEffect } from "preact/hooks";
import { api, latencyMs } from "./api";
import { ChatView } from "./chat/view";
import { shortId, span } from "./format";
import { InspectorView } from "./inspector/view";
import { Icon } from "./parts/icon";
import { address, route } from "./router";
import { RunsView } from "./runs/view";
import { ServerView } from "./server/view";
import { server, signIn, signOut, token, type ServerInfo } from "./session";
import { SignIn } from "./sign_in";
import { nextTheme, theme } from "./theme";
import { Toasts } from "./toasts";

const ASK_MS = 10_000;
const AGAIN_MS = 2000;

const VIEWS: Array<{ name: string; title: string; icon: string; View: FunctionComponent }> = [
  { name: "chat", title: "Chat", icon: "message-square", View: ChatView },
  { name: "runs", title: "Runs", icon: "list", View: RunsView },
  { name: "inspector", title: "Inspector", icon: "activity", View: InspectorView },
  { name: "server", title: "Server", icon: "server", View: ServerView },
];

/** Ask who we are, and whether the server answers. */
function useServer(): void {
  useEffect(() => {
    const stop = new AbortController();
    let timer: ReturnType<typeof setTimeout>;
    const ask = async (): Promise<void> => {
      clearTimeout(timer);
      let waitMs = AGAIN_MS;
      try {
        if (signIn.peek() === null) {
          server.value = await api<ServerInfo>("v1/server", { signal: stop.signal });
          waitMs = ASK_MS;
        }
      } catch {
        // The header shows that the server does not answer.
      }
      if (!stop.signal.aborted && !document.hidden) timer = setTimeout(ask, waitMs);
    };
    const wake = (): void => void (document.hidden || ask());
    document.addEventListener("visibilitychange", wake);
    void ask();
    return () => {
      stop.abort();
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", wake);
    };
  }, []);
}

export function App() {
  useServer();
  const wanted = route.value.path[0];
  const { name: shown, View, title } = VIEWS.find(({ name }) => name === wanted) ?? VIEWS[0]!;
  useEffect(() => {
    document.title = `${title} · Reattach`;
  }, [title]);
  const isOut = signIn.value !== null;
  return (
    <>
      {!isOut && (
        <a class="skip" href="#main" onClick={(event) => (event.preventDefault(), document.getElementById("main")?.focus())}>
          Skip to the content
        </a>
      )}
      <header class="top">
        <a class="brand" href={address(["chat"])}>
          <img src={new URL("icon.svg", import.meta.url).href} alt="" width="22" height="22" /> Reattach
        </a>
        <nav class="tabs" aria-label="Views">
          {VIEWS.map(({ name, title, icon }) => (
            <a key={name} href={address([name])} aria-current={name === shown ? "page" : undefined}>
              <Icon name={icon} /> {title}
            </a>
          ))}
        </nav>
        <Status />
      </header>
      {server.value && (
        <main class="view" id="main" tabIndex={-1} hidden={isOut}>
          <h1 class="unseen">{title}</h1>
          <View />
        </main>
      )}
      {isOut && <SignIn />}
      <Toasts />
    </>
  );
}

function Status() {
  const info = server.value;
  const isHere = latencyMs.value !== null;
  const [state, text] = !isHere
    ? info
      ? ["lost", "no answer"]
      : ["", "connecting"]
    : info?.status === "draining"
      ? ["draining", "draining"]
      : ["live", span(latencyMs.value!)];
  const themes = { auto: "monitor", light: "sun", dark: "moon" };
  return (
    <div class="status">
      {signIn.value === null && (
        <span class={`connection ${state}`} title={info ? `Reattach ${info.version}` : ""}>
          <i class="dot" /> {text}
        </span>
      )}
      {info && !info.open && (
        <span class="tenant" title={`Tenant ${info.tenant}`}>
          {shortId(info.tenant)}
        </span>
      )}
      {token.value && signIn.value === null && (
        <button type="button" class="quiet" aria-label="Sign out" title="Sign out" onClick={() => signOut()}>
          <Icon name="log-out" />
        </button>
      )}
      <button type="button" class="quiet" aria-label={`Theme: ${theme.value}`} title={`Theme: ${theme.value}`} onClick={nextTheme}>
        <Icon name={themes[theme.value]} />
      </button>
    </div>
  );
}
