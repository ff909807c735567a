// A page with the hook useChat, and the session of its user as `session`: the methods of those in driver.mjs.
import { Chat, useChat } from "@ai-sdk/react";
import { DefaultChatTransport, lastAssistantMessageIsCompleteWithApprovalResponses } from "ai";
import { createRoot } from "react-dom/client";

import { approvalOf, endOf, shownOf } from "sessions/ui_messages.mjs";

const query = new URLSearchParams(location.search);
const [api, id] = [query.get("api"), query.get("id")];
const messages = await (await fetch(`${api}/${id}/messages`)).json();
let answers = 0;
const counted = async (...request) => await fetch(...request).finally(() => (answers += 1));
const chat = new Chat({
    id,
    messages,
    transport: new DefaultChatTransport({ api, fetch: counted }),
    sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithApprovalResponses,
});
let hasSent = false;
// The browser keeps the answer to its preflight request, so that a lost response is the one to a message.
await fetch(api, { method: "POST", headers: { "content-type": "application/json" }, body: "{}" });

function Page() {
    useChat({ chat, resume: true });
    return shownOf(chat.messages).map(([kind, text], number) => (
        <p key={number} title={kind}>
            {text}
        </p>
    ));
}

createRoot(document.getElementById("root")).render(<Page />);

/** Looks again after each task until the condition holds. */
async function until(condition) {
    while (!condition()) await new Promise((resolve) => setTimeout(resolve, 5));
}

const seen = () => [...document.querySelectorAll("p")].map((one) => [one.title, one.textContent]);

/** Waits until React has shown the last change. */
async function ended() {
    await until(() => chat.status === "ready" || chat.status === "error");
    await until(() => JSON.stringify(seen()) === JSON.stringify(shownOf(chat.messages)));
    return endOf(chat);
}

await until(() => answers > 0); // Until the hook knows that no answer is running, it loses one that is sent.
globalThis.session = {
    async send(text) {
        hasSent = true;
        await chat.sendMessage({ text });
        return await ended();
    },
    async repeat() {
        await chat.sendMessage();
        return await ended();
    },
    async resume() {
        if (chat.status === "error") {
            document.dispatchEvent(new Event("visibilitychange")); // The user returns to the tab.
            await until(() => chat.status !== "error");
        } else if (hasSent) await chat.resumeStream();
        else await until(() => chat.messages.at(-1)?.metadata?.stop_reason || chat.status === "error");
        return await ended();
    },
    async approve() {
        const count = chat.messages.length;
        await chat.addToolApprovalResponse({ id: approvalOf(chat.messages).id, approved: true });
        await until(() => chat.messages.at(-1).metadata?.stop_reason === "end_turn" || chat.status === "error");
        return chat.messages.length === count ? await ended() : "stopped: in another message";
    },
    async cancel() {
        await fetch(`${api}/${id}/stop`, { method: "POST" });
    },
    view: () => ({ kept: null, shown: seen() }),
};
