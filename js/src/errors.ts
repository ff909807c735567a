/** The server refused, or the stream cannot go on. The members of the server's answer are its own. */
export class ReattachError extends Error {
  /** The status of the server's answer; 0 if there was none. */
  declare readonly status: number;
  /** The stable code of the server's error. */
  declare readonly code?: string;
}

/** The events are no longer kept (410). The messages are in the conversation. */
export class Gone extends ReattachError {
  /** The first event that is still kept, if any is. */
  declare readonly earliest_seq?: number;
  /** When the log expired, if it did. */
  declare readonly expired_at?: string;
}

/** The token was refused, and so was a fresh one (401). */
export class Unauthorized extends ReattachError {}

/** No such run, OTID or conversation (404). */
export class NotFound extends ReattachError {}

/** The conversation is busy, the OTID has another message, or the cursor is ahead (409). */
export class Conflict extends ReattachError {
  /** The active run, or the run of the OTID. */
  declare readonly run_id?: string;
}

/** The time for retries is over. The run may go on: follow it again. */
export class GaveUp extends ReattachError {
  constructor(
    /** When the last sign of life came. */
    readonly since: Date,
    /** The cause of the last failure. */
    readonly last: string,
  ) {
    super(`No connection since ${since.toISOString()}: ${last}. Follow the run again.`);
  }
}

/** A failure that may pass. */
export class Lost extends ReattachError {
  constructor(
    /** The cause. None: connect again at once, without counting it as a failure. */
    message?: string,
    /** The least wait before the next attempt. */
    readonly ms = 0,
  ) {
    super(message);
  }
}

// Minified classes have lost their names.
const NAMED = { ReattachError, Gone, Unauthorized, NotFound, Conflict, GaveUp };
for (const [name, kind] of Object.entries(NAMED)) Object.assign(kind.prototype, { name, status: 0 });

const KINDS: Record<number, typeof ReattachError> = {
  401: Unauthorized,
  404: NotFound,
  409: Conflict,
  410: Gone,
};

/** Return the error for a refused request, in the server's own words if it sent any. */
export async function refusal(response: Response, wasAttached?: boolean): Promise<Error> {
  const { status, headers } = response;
  let body: { detail?: unknown } = {};
  try {
    body = JSON.parse(await response.text());
  } catch {
    // Another program answered, or the answer was cut.
  }
  const { detail } = body;
  // A proxy whose server is away answers with errors of its own, some with 404.
  if (/408|425|429|5(?!01)../.test(`${status}`) || (wasAttached && !detail)) {
    const error = new Lost(`the server answered ${status}`, Number(headers.get("retry-after")) * 1000 || 0);
    return Object.assign(error, { status });
  }
  const kind = KINDS[status] ?? ReattachError;
  const error = new kind(`${status}: ${detail ?? "Another program answered. Check the URL."}`);
  return Object.assign(error, body, { status });
}
