/** A block of a stream of server-sent events. A keepalive, which is a comment, is an event `ping`. */
export interface Frame {
  event?: string;
  id?: string;
  data?: string;
  retry?: string;
}

/**
 * Return a parser: give it each piece of text, get the frames that are complete by it.
 *
 * Lines end with CR, LF or CRLF, also when a piece ends between the two. A frame without its blank
 * line is never returned.
 */
export function parser(): (text: string) => Frame[] {
  let rest = "";
  let endedWithCr = false;
  let frame: Frame = {};
  return (text) => {
    const frames: Frame[] = [];
    if (endedWithCr && text[0] === "\n") text = text.slice(1);
    endedWithCr = text.endsWith("\r");
    const lines = text.split(/\r\n?|\n/);
    lines[0] = rest + lines[0];
    rest = lines.pop()!;
    for (const line of lines) {
      const [, name, value] = /^([^:]*):? ?(.*)/s.exec(line)!;
      if (!line) {
        frames.push(frame);
        frame = {};
      } else if (!name) frames.push({ event: value === "keepalive" ? "ping" : ":" });
      else if (name === "data" && frame.data !== undefined) frame.data += `\n${value}`;
      else frame[name as keyof Frame] = value!;
    }
    return frames;
  };
}
