import { type FormEvent, useState } from "react";
import { connect, type State } from "@reattach/client";
import { type Listed, type Message, shownOf } from "./messages.js";
import { useAnswer } from "./use-answer.js";

const server = "http://localhost:8283";
const client = connect({ url: server, storage: sessionStorage });

/** Return the newest messages of a conversation. Without a network it tries again. */
async function list(conversation: string): Promise<Message[]> {
  const url = `${server}/v1/conversations/${conversation}/messages?order=desc&limit=100`;
  for (;;) {
    try {
      const response = await fetch(url);
      const listed = (await response.json()) as Listed[];
      return response.ok ? shownOf(listed.reverse()) : [];
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

function lineOf(state: State): string {
  if (state.name === "live") return "Answering…";
  if (state.name === "waiting" && state.attempt > 1) return "No connection. This page reconnects by itself.";
  if (state.name === "failed") return state.error.message;
  if (state.name !== "ended") return "";
  return state.status === "cancelled" ? "Stopped." : "The answer has ended.";
}

const AUTHORS = { user: "You: ", agent: "Answer: ", error: "The answer failed: " };

export function Chat({ conversation }: { conversation: string }) {
  const { messages, state, send, stop } = useAnswer(client, conversation, list);
  const [text, setText] = useState("");
  const isBusy = ["connecting", "live", "waiting", "renewing"].includes(state.name);

  const submit = (event: FormEvent) => {
    event.preventDefault();
    setText("");
    send(text).catch(() => setText(text));
  };

  return (
    <main>
      <h1>Chat</h1>
      {messages.length === 0 && <p>No messages yet. Ask something.</p>}
      <ol aria-label="Messages" aria-busy={isBusy}>
        {messages.map((message) => (
          <li key={message.id} className={message.author}>
            <span>{AUTHORS[message.author]}</span>
            {message.text}
          </li>
        ))}
      </ol>
      <p role="status">{lineOf(state)}</p>
      <form onSubmit={submit}>
        <label htmlFor="text">Your message</label>
        <input id="text" required autoFocus value={text} onChange={(event) => setText(event.target.value)} />
        {isBusy ? (
          <button key="stop" type="button" onClick={() => void stop().catch(() => {})}>
            Stop
          </button>
        ) : (
          <button key="send">Send</button>
        )}
      </form>
    </main>
  );
}
