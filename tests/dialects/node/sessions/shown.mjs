// The things that a user sees of an answer, in order: `["text", "Hello"]`, `["reasoning", …]`, `["tool", "name: result"]`.

/** Returns the list with a piece of text at its end. */
export function added(shown, kind, piece) {
    if (!piece) return shown;
    const last = shown.at(-1);
    if (last?.[0] === kind) return [...shown.slice(0, -1), [kind, last[1] + piece]];
    return [...shown, [kind, piece]];
}

export const tool = (name, result) => ["tool", result === undefined ? name : `${name}: ${result}`];
