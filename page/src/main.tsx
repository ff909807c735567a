import { render } from "preact";
import { App } from "./app";
import "./styles/base.css";
import "./styles/parts.css";
import "./styles/chat.css";
import "./styles/runs.css";
import "./styles/inspector.css";
import "./styles/server.css";

render(<App />, document.getElementById("app")!);
