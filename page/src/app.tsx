import type { FunctionComponent } from "preact";
import { useEffect } from "preact/hooks";
import { signal } from "@preact/signals";
import { api, asApiError, latencyMs, type ApiError } from "./api";
import { ChatView } from "./chat/view";
import { shortId, span } from "./format";
import { InspectorView } from "./inspector/view";
import { Empty } from "./parts/empty";
import { Fault } from "./parts/fault";
import { Icon } from "./parts/icon";
import { Missing } from "./parts/missing";
import { address, route } from "./router";
import { RunsView } from "./runs/view";
import { ServerView } from "./server/view";
import { may, server, signIn, signOut, token, type ServerInfo } from "./session";
import { SignIn } from "./sign_in";
import { nextTheme, theme } from "./theme";
import { Toasts } from "./toasts";

const ASK_MS = 10_000;
const AGAIN_MS = 2000;

/** Why the server did not say who we are. */
const failure = signal<ApiError | null>(null);

interface ViewOf {
  name: string;
  title: string;
  icon: string;
  View: FunctionComponent;
  /** Whether nothing in the view can be shown without the scope `read`. */
  reads?: boolean;
}

const VIEWS: ViewOf[] = [
  { name: "chat", title: "Chat", icon: "message-square", View: ChatView, reads: true },
  { name: "runs", title: "Runs", icon: "list", View: RunsView },
  { name: "inspector", title: "Inspector", icon: "activity", View: InspectorView, reads: true },
  { name: "server", title: "Server", icon: "server", View: ServerView },
];

const UNKNOWN: ViewOf = { name: "", title: "Not found", icon: "", View: NoView };

function NoView() {
  return (
    <Empty title="No such view">
      <p>
        The address names <code>{route.value.path[0]}</code>. <a href={address(["chat"])}>Show the chat</a>
      </p>
    </Empty>
  );
}

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
          failure.value = null;
          waitMs = ASK_MS;
        }
      } catch (raised) {
        // The header shows later that the server does not answer.
        if (!stop.signal.aborted) failure.value = asApiError(raised);
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
  const { name: shown, View, title, reads } = VIEWS.find(({ name }) => name === (wanted ?? "chat")) ?? UNKNOWN;
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
          {reads && !may("read") ? <Missing scope="read" /> : <View />}
        </main>
      )}
      {!server.value && !isOut && failure.value && (
        <main class="view padded">
          <Fault error={failure.value} />
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
        <span class={`connection ${state}`} title={info ? `${isHere ? `The last answer took ${span(latencyMs.value!)}. ` : ""}Reattach ${info.version}` : ""}>
          <i class="dot" /> {state === "live" && <span class="word">connected ·</span>} {text}
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
