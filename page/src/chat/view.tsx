import { Empty } from "../parts/empty";

export function ChatView() {
  return <Empty title="Chat" />;
}
