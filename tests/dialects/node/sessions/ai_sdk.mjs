// Sessions of the AI SDK: its Chat of the versions 5, 6 and 7, and WorkflowChatTransport.
import { Chat as Chat5 } from "@ai-sdk/react5";
import { Chat as Chat6 } from "@ai-sdk/react6";
import { Chat as Chat7 } from "@ai-sdk/react7";
import * as ai5 from "ai5";
import * as ai6 from "ai6";
import * as ai7 from "ai7";

import { documented } from "../documented.mjs";
import { approvalOf, endOf, shownOf } from "./ui_messages.mjs";

const VERSIONS = { 5: { ...ai5, Chat: Chat5 }, 6: { ...ai6, Chat: Chat6 }, 7: { ...ai7, Chat: Chat7 } };
const { replayedFetch } = await documented("ai-sdk.md", "replayedFetch");
const { workflowTransport } = await documented("ai-sdk.md", "workflowTransport");

class ChatSession {
    constructor({ url, agent, kept }, version, transport) {
        this.version = version;
        this.api = `${url}/ai-sdk/${agent}/chat`;
        this.kept = kept ?? { id: crypto.randomUUID() };
        this.transport = transport;
        this.chat = kept ? null : this.newChat([]);
        this.finished = () => {};
    }

    newChat(messages) {
        const { Chat, DefaultChatTransport, lastAssistantMessageIsCompleteWithApprovalResponses } = VERSIONS[this.version];
        const fetch = this.version === "5" ? replayedFetch(globalThis.fetch) : globalThis.fetch;
        return new Chat({
            id: this.kept.id,
            messages,
            transport: this.transport?.(this.api, this.kept.id) ?? new DefaultChatTransport({ api: this.api, fetch }),
            sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithApprovalResponses,
            onFinish: () => this.finished(),
            onError: () => {},
        });
    }

    async send(text) {
        await this.chat.sendMessage({ text });
        return this.end;
    }

    async repeat() {
        await this.chat.sendMessage();
        return this.end;
    }

    async resume() {
        if (this.chat === null) {
            try {
                const response = await fetch(`${this.api}/${this.kept.id}/messages`);
                this.chat = this.newChat(await response.json());
            } catch (error) {
                return `broke: ${error.message}`;
            }
        } else if (this.version === "5" && this.chat.lastMessage?.role === "assistant") {
            this.chat.messages = this.chat.messages.slice(0, -1); // As docs/ai-sdk.md says.
        }
        await this.chat.resumeStream();
        return this.end;
    }

    async approve() {
        const done = new Promise((resolve) => (this.finished = resolve));
        await this.chat.addToolApprovalResponse({ id: approvalOf(this.chat.messages).id, approved: true });
        await done;
        return this.end;
    }

    async cancel() {
        await fetch(`${this.api}/${this.kept.id}/stop`, { method: "POST" });
    }

    get end() {
        return endOf(this.chat);
    }

    get shown() {
        return shownOf(this.chat.messages);
    }
}

export const CLIENTS = {
    "ai-5": (options) => new ChatSession(options, "5"),
    "ai-6": (options) => new ChatSession(options, "6"),
    "ai-7": (options) => new ChatSession(options, "7"),
    "workflow": (options) => new ChatSession(options, "7", workflowTransport),
};
