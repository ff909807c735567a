import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { Chat } from "./chat.js";

// Your application makes the conversation. The `key` gives each one a state of its own.
const conversation = new URLSearchParams(location.search).get("conversation") ?? "";
createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <Chat key={conversation} conversation={conversation} />
  </StrictMode>,
);
