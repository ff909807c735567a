import { Empty } from "../parts/empty";
import { may, server } from "../session";
import { AuditCard } from "./audit";
import { DoctorCard } from "./doctor";
import { KeysCard } from "./keys";
import { ProcessesCard, StoresCard, useProcesses } from "./processes";
import { TenantsCard } from "./tenants";

/** The server itself: its processes and stores, its checks, its tenants and keys. */
export function ServerView() {
  if (may("admin") || may("operator")) return <Cards />;
  const info = server.value;
  const has = info?.token ? `This stream token has ${info.token.scopes.join(" and ")}` : `This key has ${info?.scopes.join(" and ")}`;
  return (
    <div class="server">
      <h1 class="unseen">Server</h1>
      <Empty title="This needs the scope admin" command="reattach keys create NAME --scope read --scope admin">
        <p>
          {has}. A key with the scope <code>admin</code> shows your tenant here, and one with <code>operator</code> the whole server.
        </p>
      </Empty>
    </div>
  );
}

function Cards() {
  const processes = useProcesses();
  return (
    <div class="server">
      <h1 class="unseen">Server</h1>
      <div class="cards">
        <ProcessesCard processes={processes} />
        <TenantsCard />
        <div class="column">
          <StoresCard processes={processes} />
          <KeysCard />
        </div>
        <div class="column">
          <DoctorCard />
          <AuditCard />
        </div>
      </div>
    </div>
  );
}
