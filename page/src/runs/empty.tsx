import { api } from "../api";
import { Empty } from "../parts/empty";
import { usePolled } from "../polling";
import { address, replace } from "../router";
import { base, may, token } from "../session";

const LOOK_MS = 3000;

/** The place of the table while there is no run: the command that sends one. */
export function NoRuns({ isFiltered }: { isFiltered: boolean }) {
  if (isFiltered) {
    return (
      <Empty title="No run matches">
        <p>The filter hides all runs.</p>
        <button type="button" onClick={() => replace(["runs"])}>
          Remove the filter
        </button>
      </Empty>
    );
  }
  // A key that cannot list the agents, or cannot send, needs no command for that.
  if (!may("read") || !may("send")) return <Empty title="No runs yet" />;
  return <SendOne />;
}

function SendOne() {
  const agents = usePolled((signal) => api<Array<{ id: string }>>("v1/agents/", { query: { limit: 1 }, signal }), LOOK_MS);
  const agent = agents.data.value?.[0]?.id;
  return (
    <Empty title="No runs yet" command={agent ? sending(agent) : creating()}>
      {agent ? (
        <p>
          Send one from <a href={address(["chat"])}>Chat</a>, or with this command:
        </p>
      ) : (
        <p>
          Make an agent in <a href={address(["chat"])}>Chat</a>, or with this command; then send it a message.
        </p>
      )}
    </Empty>
  );
}

function creating(): string {
  return curl("v1/agents/", { name: "guide" });
}

function sending(agent: string): string {
  const messages = [{ role: "user", content: "Tell me of an island" }];
  return curl("v1/conversations/default/messages", { agent_id: agent, messages, streaming: true, background: true });
}

function curl(path: string, body: object): string {
  const key = token.peek() ? ` \\\n  -H "Authorization: Bearer $REATTACH_KEY"` : "";
  return `curl -N ${new URL(path, base).href}${key} \\\n  --json '${JSON.stringify(body)}'`;
}
