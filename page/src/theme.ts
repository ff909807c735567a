import { effect, signal } from "@preact/signals";
import { keep, load } from "./stored";

export type Theme = "auto" | "light" | "dark";
const THEMES: Theme[] = ["auto", "light", "dark"];

const stored = load("localStorage", "theme") as Theme;
export const theme = signal<Theme>(THEMES.includes(stored) ? stored : "auto");

export function nextTheme(): void {
  theme.value = THEMES[(THEMES.indexOf(theme.value) + 1) % THEMES.length]!;
  keep("localStorage", "theme", theme.value);
}

effect(() => {
  document.documentElement.dataset.theme = theme.value;
});
