import { Empty } from "../parts/empty";

export function ServerView() {
  return <Empty title="Server" />;
}
