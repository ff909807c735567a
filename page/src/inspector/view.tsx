import { Empty } from "../parts/empty";

export function InspectorView() {
  return <Empty title="Inspector" />;
}
