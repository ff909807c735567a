import { signal, useSignal } from "@preact/signals";
import { useEffect, useState } from "preact/hooks";
import { api, asApiError, type ApiError } from "../api";
import { age } from "../format";
import { Dialog } from "../parts/dialog";
import { Fault } from "../parts/fault";
import { Icon } from "../parts/icon";
import { usePolled } from "../polling";
import { address, go } from "../router";
import { may } from "../session";
import { toast } from "../toasts";
import { firstText, listModels, type Agent, type Conversation } from "./server";

/** Do a change; a refusal becomes a message. */
export async function tried(work: () => Promise<unknown>): Promise<void> {
  try {
    await work();
  } catch (raised) {
    const error = asApiError(raised);
    toast(`${error.detail} (${error.code})`, "bad");
  }
}

interface Properties {
  agents: Agent[];
  agent: Agent | null;
  conversations: Conversation[];
  current: string | null;
  active: Set<string>;
  onChange: () => void;
  onDeleted: (conversation: string) => void;
  onNew: () => void;
}

export function Sidebar({ agents, agent, conversations, current, active, onChange, onDeleted, onNew }: Properties) {
  const dialog = useSignal<"new" | "edit" | null>(null);
  useFirstTexts(conversations);
  const renaming = useSignal<Conversation | null>(null);
  const remove = (one: Conversation): void => {
    if (!confirm(`Delete "${titleOf(one)}" with its messages?`)) return;
    void tried(async () => {
      await api(`v1/conversations/${one.id}`, { method: "DELETE" });
      onDeleted(one.id);
      if (one.id === current) go(["chat", agent!.id]);
    });
  };
  return (
    <aside class="sidebar" aria-label="Conversations">
      <div class="agents">
        <select aria-label="Agent" value={agent?.id ?? ""} onChange={(event) => go(["chat", event.currentTarget.value])}>
          {agents.map(({ id, name }) => (
            <option key={id} value={id}>{name}</option>
          ))}
        </select>
        {may("admin") && (
          <>
            {agent && (
              <button type="button" class="quiet small" aria-label="Change the agent" title="Change the agent" onClick={() => (dialog.value = "edit")}>
                <Icon name="pencil" />
              </button>
            )}
            <button type="button" class="quiet small" aria-label="New agent" title="New agent" onClick={() => (dialog.value = "new")}>
              <Icon name="plus" />
            </button>
          </>
        )}
      </div>
      {may("send") && (
        <button type="button" class="new" onClick={onNew}>
          <Icon name="plus" /> New conversation
        </button>
      )}
      <ul class="conversations">
        {conversations.map((one) => (
          <li key={one.id} class={one.id === current ? "current" : ""}>
            <a href={address(["chat", one.agent_id, one.id])} aria-current={one.id === current ? "page" : undefined}>
              {active.has(one.id) && <i class="dot beating" title="An answer is being written" />}
              <span>{titleOf(one)}</span>
              <small class="muted number">{age(one.last_message_at ?? one.created_at)}</small>
            </a>
            {may("send") && (
              <button type="button" class="quiet small" aria-label={`Rename ${titleOf(one)}`} title="Rename" onClick={() => (renaming.value = one)}>
                <Icon name="pencil" size={13} />
              </button>
            )}
            {may("admin") && (
              <button type="button" class="quiet small" aria-label={`Delete ${titleOf(one)}`} title="Delete" onClick={() => remove(one)}>
                <Icon name="trash-2" size={13} />
              </button>
            )}
          </li>
        ))}
        {agent && (
          <li class={current === "default" ? "current" : ""}>
            <a href={address(["chat", agent.id, "default"])} aria-current={current === "default" ? "page" : undefined}>
              {active.has("default") && <i class="dot beating" title="An answer is being written" />}
              <span>Default conversation</span>
            </a>
          </li>
        )}
      </ul>
      {dialog.value && (
        <AgentDialog agent={dialog.value === "edit" ? agent : null} onClose={() => (dialog.value = null)} onChange={onChange} />
      )}
      {renaming.value && <RenameDialog conversation={renaming.value} onClose={() => (renaming.value = null)} onChange={onChange} />}
    </aside>
  );
}

export function titleOf(one: Conversation): string {
  return one.summary?.trim() || firstTexts.value.get(one.id) || "New conversation";
}

/** The beginnings of conversations without a name, by their ids. */
const firstTexts = signal<ReadonlyMap<string, string>>(new Map());
const asked = new Set<string>();
const MOST_ASKED = 40;

/** Ask for the first messages of the newest conversations that have no name, one after the other. */
function useFirstTexts(conversations: Conversation[]): void {
  useEffect(() => {
    const ask = async (): Promise<void> => {
      for (const { id, summary, last_message_at } of conversations.slice(0, MOST_ASKED)) {
        const key = `${id} ${last_message_at}`;
        if (summary?.trim() || !last_message_at || firstTexts.peek().get(id) || asked.has(key)) continue;
        asked.add(key);
        const text = await firstText(id).catch(() => "");
        if (text) firstTexts.value = new Map(firstTexts.peek()).set(id, text);
      }
    };
    void ask();
  }, [conversations]);
}

function RenameDialog({ conversation, onClose, onChange }: { conversation: Conversation; onClose: () => void; onChange: () => void }) {
  const [name, setName] = useState(conversation.summary ?? "");
  const submit = (event: Event): void => {
    event.preventDefault();
    void tried(async () => {
      await api(`v1/conversations/${conversation.id}`, { method: "PATCH", body: { summary: name.trim() } });
      onChange();
      onClose();
    });
  };
  return (
    <Dialog title="Rename the conversation" onClose={onClose}>
      <form onSubmit={submit}>
        <label>
          Name
          <input autofocus required maxLength={200} value={name} onInput={(event) => setName(event.currentTarget.value)} />
        </label>
        <div class="choices">
          <button type="submit" class="primary">Rename</button>
        </div>
      </form>
    </Dialog>
  );
}

/** Makes an agent, or changes or deletes one. */
export function AgentDialog({ agent, onClose, onChange }: { agent: Agent | null; onClose: () => void; onChange: () => void }) {
  const { data: models } = usePolled(listModels, null);
  const [name, setName] = useState(agent?.name ?? "guide");
  const [model, setModel] = useState(agent?.model ?? "");
  const [system, setSystem] = useState(agent?.system ?? "");
  const [error, setError] = useState<ApiError | null>(null);
  const change = async (work: () => Promise<Agent | null>): Promise<void> => {
    try {
      const made = await work();
      onChange();
      onClose();
      go(made ? ["chat", made.id] : ["chat"]);
    } catch (raised) {
      setError(asApiError(raised));
    }
  };
  const submit = (event: Event): void => {
    event.preventDefault();
    const body = { name: name.trim(), ...(model ? { model } : {}), ...(system.trim() ? { system: system.trim() } : {}) };
    void change(() =>
      agent ? api<Agent>(`v1/agents/${agent.id}`, { method: "PATCH", body }) : api<Agent>("v1/agents/", { method: "POST", body }),
    );
  };
  const remove = (): void => {
    if (!confirm(`Delete ${agent!.name} with its conversations? Its active runs are cancelled.`)) return;
    void change(async () => {
      await api(`v1/agents/${agent!.id}`, { method: "DELETE" });
      return null;
    });
  };
  return (
    <Dialog title={agent ? "Change the agent" : "New agent"} onClose={onClose}>
      <form onSubmit={submit}>
        <label>
          Name
          <input autofocus required maxLength={200} value={name} onInput={(event) => setName(event.currentTarget.value)} />
        </label>
        <label>
          Model
          <select value={model} onChange={(event) => setModel(event.currentTarget.value)}>
            {!agent && <option value="">The server's default</option>}
            {models.value?.map(({ handle }) => (
              <option key={handle} value={handle}>{handle}</option>
            ))}
          </select>
        </label>
        <label>
          Instructions
          <textarea rows={4} value={system} placeholder="The default: a helpful assistant" onInput={(event) => setSystem(event.currentTarget.value)} />
        </label>
        {error && <Fault error={error} />}
        <div class="choices">
          {agent && (
            <button type="button" class="danger" onClick={remove}>
              <Icon name="trash-2" /> Delete
            </button>
          )}
          <button type="submit" class="primary">{agent ? "Save" : "Create"}</button>
        </div>
      </form>
    </Dialog>
  );
}
