import { type Client, ReattachError, type RunStream, type State } from "@reattach/client";
import { type Item, type Message, merged, withItem } from "./messages.js";

export interface View {
  messages: readonly Message[];
  /** The state of the current answer. */
  state: State;
}

/** A conversation with its answers as they come. `list` returns the messages that the server has. */
export class Conversation {
  #view: View = { messages: [], state: { name: "idle" } };
  #listeners = new Set<() => void>();
  #current: RunStream<Item> | null = null;
  #unsent: string; // The key of the question until the server has it, also over a reload.

  constructor(
    private client: Client,
    private id: string,
    private list: (id: string) => Promise<Message[]>,
  ) {
    this.#unsent = `unsent ${id}`;
  }

  view = () => this.#view;

  subscribe = (listener: () => void) => {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  };

  /** Show the messages so far, and follow the active answer. */
  open() {
    const question = sessionStorage.getItem(this.#unsent);
    if (question) {
      this.send(question).catch(() => {});
      void this.list(this.id).then((earlier) => this.#show(merged(earlier, this.#view.messages)));
    } else {
      const options = { snapshot: true, onState: this.#onState } as const;
      void this.#read(this.client.follow({ conversation: this.id }, options));
    }
  }

  /** Leave the answer. The run goes on. */
  close() {
    this.#current?.close();
    this.#current = null;
  }

  /** Send a question. The promise rejects if the server refuses it. */
  send = (text: string): Promise<string> => {
    sessionStorage.setItem(this.#unsent, text);
    const stream = this.client.send(this.id, text, { onState: this.#onState });
    stream.runId.then(() => sessionStorage.removeItem(this.#unsent)).catch(() => {});
    void this.#read(stream, [{ id: stream.otid, author: "user", text }]);
    return stream.runId;
  };

  stop = async () => this.client.cancel({ run: await this.#current!.runId });

  async #read(stream: RunStream<Item>, answer: readonly Message[] = []) {
    this.close();
    this.#current = stream;
    const isLeft = () => this.#current !== stream;
    this.#add(answer);
    try {
      for await (const item of stream) {
        // The list is read after the snapshot, so no message falls between the two.
        if (item.message_type === "snapshot") answer = await this.list(this.id);
        if (isLeft()) return;
        this.#add((answer = withItem(answer, item)));
      }
    } catch (error) {
      if (isLeft()) return;
      sessionStorage.removeItem(this.#unsent);
      const isIdle = error instanceof ReattachError && error.status === 400;
      if (isIdle) this.#onState({ name: "idle" });
      const listed = await this.list(this.id); // Nothing is active, or the server has refused.
      if (!isLeft()) this.#show(listed);
    }
  }

  #add(messages: readonly Message[]) {
    this.#show(merged(this.#view.messages, messages));
  }

  #show(messages: readonly Message[]) {
    this.#set({ ...this.#view, messages });
  }

  // A closed stream is one that was left: its state is no longer that of the answer.
  #onState = (state: State) => {
    if (state.name !== "closed") this.#set({ ...this.#view, state });
  };

  #set(view: View) {
    this.#view = view;
    this.#listeners.forEach((listener) => listener());
  }
}
