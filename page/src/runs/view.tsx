import { Empty } from "../parts/empty";

export function RunsView() {
  return <Empty title="Runs" />;
}
