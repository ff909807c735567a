import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { Icon } from "../parts/icon";
import { may } from "../session";
import { toast } from "../toasts";
import { Picture } from "./blocks";
import type { Draft, Thread } from "./thread";
import type { ImageSource } from "./transcript";

const TYPES = ["image/png", "image/jpeg", "image/gif", "image/webp"];
const MOST_BYTES = 10 * 1024 * 1024;

/** Return the image as a part of a message. Null, with a message, if the server would refuse it. */
async function sourceOf(file: File): Promise<ImageSource | null> {
  if (!TYPES.includes(file.type)) {
    toast(`${file.name || "This file"} is ${file.type || "of an unknown type"}. Images are PNG, JPEG, GIF or WebP.`, "bad");
    return null;
  }
  if (file.size > MOST_BYTES) {
    toast(`${file.name} has ${(file.size / 1024 ** 2).toFixed(1)} MiB. An image has at most 10 MiB.`, "bad");
    return null;
  }
  const bytes = new Uint8Array(await file.arrayBuffer());
  let binary = "";
  for (let at = 0; at < bytes.length; at += 32_768) binary += String.fromCharCode(...bytes.subarray(at, at + 32_768));
  return { type: "base64", media_type: file.type, data: btoa(binary) };
}

interface Properties {
  thread: Thread;
  onSend: (draft: Draft) => void;
}

export function Composer(given: Properties) {
  if (!may("send")) return <p class="composer muted">This key or token may read, and not send.</p>;
  return <Field {...given} />;
}

/** The field for the next message. Images are attached, pasted or dropped. */
function Field({ thread, onSend }: Properties) {
  const field = useRef<HTMLTextAreaElement>(null);
  const files = useRef<HTMLInputElement>(null);
  const isOver = useSignal(false);
  const draft = thread.draft.value;
  const isActive = thread.isActive.value;
  const waits = thread.transcript.pending().length > 0;
  const canSend = !isActive && !waits && (draft.text.trim() !== "" || draft.images.length > 0);

  useEffect(() => {
    const element = field.current!;
    element.style.height = "auto";
    element.style.height = `${Math.min(element.scrollHeight + 2, 220)}px`;
  }, [draft.text, thread]);

  const attach = async (list: Iterable<File>): Promise<void> => {
    const images = (await Promise.all([...list].map(sourceOf))).filter((one) => one !== null);
    if (images.length) thread.setDraft({ ...thread.draft.peek(), images: [...thread.draft.peek().images, ...images] });
  };
  const submit = (event?: Event): void => {
    event?.preventDefault();
    if (canSend) onSend(draft);
    field.current!.focus();
  };
  return (
    <form
      class={`composer ${isOver.value ? "over" : ""}`}
      onSubmit={submit}
      onDragOver={(event) => {
        event.preventDefault();
        isOver.value = true;
      }}
      onDragLeave={() => (isOver.value = false)}
      onDrop={(event) => {
        event.preventDefault();
        isOver.value = false;
        void attach(event.dataTransfer?.files ?? []);
      }}
    >
      {draft.images.length > 0 && (
        <div class="attached">
          {draft.images.map((source, at) => (
            <span key={at}>
              <Picture source={source} />
              <button
                type="button"
                class="small"
                aria-label={`Remove image ${at + 1}`}
                onClick={() => thread.setDraft({ ...draft, images: draft.images.filter((one) => one !== source) })}
              >
                <Icon name="x" size={12} />
              </button>
            </span>
          ))}
        </div>
      )}
      <textarea
        id="message"
        ref={field}
        rows={1}
        aria-label="Message"
        placeholder={waits ? "Decide on the call first" : isActive ? "The next message" : "Message"}
        value={draft.text}
        onInput={(event) => thread.setDraft({ ...draft, text: event.currentTarget.value })}
        onKeyDown={(event) => {
          if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
        }}
        onPaste={(event) => {
          const pasted = [...(event.clipboardData?.files ?? [])];
          if (pasted.length === 0) return;
          event.preventDefault();
          void attach(pasted);
        }}
      />
      <input
        ref={files}
        type="file"
        accept={TYPES.join(",")}
        multiple
        hidden
        onChange={(event) => {
          void attach(event.currentTarget.files ?? []);
          event.currentTarget.value = "";
        }}
      />
      <button type="button" class="quiet" aria-label="Attach images" title="Attach images" onClick={() => files.current!.click()}>
        <Icon name="image" size={18} />
      </button>
      {isActive ? (
        <button type="button" class="stop" disabled={thread.isStopping.value || !thread.runId.value} onClick={() => thread.stop()}>
          <Icon name="square" size={14} /> {thread.isStopping.value ? "Stopping…" : "Stop"}
        </button>
      ) : (
        <button type="submit" class="primary" disabled={!canSend}>
          <Icon name="send" size={15} /> Send
        </button>
      )}
    </form>
  );
}
