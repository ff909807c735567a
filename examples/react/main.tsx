import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { Chat } from "./chat.js";

// Your application makes the conversation.
const conversation = new URLSearchParams(location.search).get("conversation") ?? "";
createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <Chat conversation={conversation} />
  </StrictMode>,
);
