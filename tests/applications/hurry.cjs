// Loaded into letta-code before itself: it asks a busy conversation again after half a second
// instead of ten. Its other waits stay as they are.
const wait = globalThis.setTimeout;

function setTimeout(callback, milliseconds, ...rest) {
  return wait(callback, milliseconds === 10_000 ? 500 : milliseconds, ...rest);
}

globalThis.setTimeout = Object.defineProperties(setTimeout, Object.getOwnPropertyDescriptors(wait));
