import { Missing } from "../parts/missing";
import { Stale } from "../parts/stale";
import { may } from "../session";
import { AuditCard } from "./audit";
import { DoctorCard } from "./doctor";
import { KeysCard } from "./keys";
import { ProcessesCard, StoresCard, useProcesses } from "./processes";
import { TenantsCard } from "./tenants";

/** The server itself: its processes and stores, its checks, its tenants and keys. */
export function ServerView() {
  if (may("admin") || may("operator")) return <Cards />;
  return (
    <div class="server">
      <Missing scope="admin">
        A key with the scope <code>admin</code> shows your tenant here, and one with <code>operator</code> the whole server.
      </Missing>
    </div>
  );
}

function Cards() {
  const processes = useProcesses();
  return (
    <div class="server">
      {processes.error.value?.status === 0 && (
        <div class="cards">
          <div class="card wide">
            <Stale polled={processes} />
          </div>
        </div>
      )}
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
