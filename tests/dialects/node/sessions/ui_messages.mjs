// A chat of the AI SDK as its user sees it. It runs in browsers too.
import { tool } from "./shown.mjs";

/** Returns how the last answer ended, once the chat has settled. */
export function endOf({ status, error, messages }) {
    if (status === "error") {
        const isBroken = error instanceof TypeError || error.message === "The answer was cut off.";
        return `${isBroken ? "broke" : "failed"}: ${error.message}`;
    }
    const last = messages.at(-1);
    if (status !== "ready" || last?.role !== "assistant") return "hangs";
    if (last.parts.some((part) => part.state === "approval-requested")) return "asked";
    const reason = last.metadata?.stop_reason;
    return { end_turn: "completed", cancelled: "cancelled" }[reason] ?? `stopped: ${reason}`;
}

export function shownOf(messages) {
    const parts = messages.flatMap((one) => (one.role === "assistant" ? one.parts : []));
    return parts.flatMap((part) => {
        if (part.type === "text" || part.type === "reasoning") return [[part.type, part.text]];
        return part.type === "dynamic-tool" ? [tool(part.toolName, part.output)] : [];
    });
}

/** Returns the approval that the last message asks for. */
export const approvalOf = (messages) => messages.at(-1).parts.find((one) => one.state === "approval-requested").approval;
