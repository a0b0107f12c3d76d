// Forms from JSON Schema. What has no better field is a piece of JSON.

import { make } from "./dom.js";

let count = 0;

/** Return a schema with its references resolved, and whether it may be null. */
function resolve(schema, root) {
  let found = schema && typeof schema === "object" ? schema : {}, nullable = false;
  for (let depth = 0; depth < 20; depth++) {
    if (typeof found.$ref === "string") {
      let target = root;
      for (const part of found.$ref.split("/").slice(1)) target = target?.[decodeURIComponent(part).replaceAll("~1", "/").replaceAll("~0", "~")];
      const { $ref, ...own } = found;
      found = { ...target, ...own };
    } else if (Array.isArray(found.anyOf)) {
      const others = found.anyOf.filter(one => one.type !== "null");
      if (others.length !== 1) break;
      const { anyOf, ...own } = found;
      nullable ||= others.length < anyOf.length;
      found = { ...others[0], ...own };
    } else break;
  }
  return { schema: found, nullable };
}

const json = value => JSON.stringify(value, null, 2);

function example(schema, root, depth = 0) {
  const { schema: found } = resolve(schema, root);
  if (found.default !== undefined) return found.default;
  if (found.examples?.length) return found.examples[0];
  if (found.enum) return found.enum[0];
  if (found.const !== undefined) return found.const;
  if (found.anyOf) return depth > 3 ? null : example(found.anyOf[0], root, depth + 1);
  switch (found.type) {
    case "string": return "";
    case "integer": case "number": return 0;
    case "boolean": return false;
    case "array": return (found.prefixItems ?? []).map(part => example(part, root, depth + 1));
    case "object": return depth > 3 ? {} : Object.fromEntries((found.required ?? []).map(
      name => [name, example(found.properties?.[name], root, depth + 1)]));
    default: return null;
  }
}

// A field: its control, and `read()`, which returns the value, or undefined to leave it out.

function selectField(options, { chosen, required }) {
  const control = make("select");
  if (!required || chosen === undefined) control.append(make("option", { value: "", textContent: required ? "choose…" : "default" }));
  options.forEach((value, n) => control.append(make("option", {
    value: String(n), textContent: typeof value === "string" ? value : JSON.stringify(value), selected: value === chosen,
  })));
  control.required = required;
  return { control, read: () => control.value === "" ? undefined : options[Number(control.value)] };
}

function booleanField(schema, required) {
  if (!required && typeof schema.default !== "boolean") return selectField([true, false], { required: false });
  const control = make("input", { type: "checkbox", checked: schema.default === true });
  return { control, read: () => control.checked };
}

function numberField(schema, required) {
  const control = make("input", {
    type: "number", step: schema.type === "integer" ? "1" : "any", required, min: schema.minimum ?? "", max: schema.maximum ?? "",
    value: typeof schema.default === "number" ? String(schema.default) : "",
  });
  return { control, read: () => control.value === "" ? undefined : Number(control.value) };
}

const PICKERS = { date: "date", time: "time", "date-time": "datetime-local" };
const PICKED = { date: /^\d{4}-\d\d-\d\d$/, time: /^\d\d:\d\d(:\d\d(\.\d{1,3})?)?$/, "date-time": /^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d{1,3})?)?$/ };

function textField(schema, required) {
  const start = typeof schema.default === "string" ? schema.default : "";
  const picker = PICKERS[schema.format];
  if (picker && (!start || PICKED[schema.format].test(start))) {
    const control = make("input", { type: picker, required, value: start, step: picker === "date" ? "" : "any" });
    return { control, read: () => control.value || undefined };
  }
  const special = schema.format || schema.pattern || schema.contentEncoding;
  const control = special
    ? make("input", { type: "text", placeholder: schema.format === "duration" ? "PT1M30S" : schema.contentEncoding ?? schema.format ?? "" })
    : make("textarea", { className: "line", rows: 1 });
  // What is typed replaces a default, as where Tab leads to a field of one line.
  control.addEventListener("focus", () => { if (control.value === start) control.select(); });
  Object.assign(control, { value: start, spellcheck: false, required: required && (special || schema.minLength > 0) });
  if (schema.examples?.length && !control.placeholder) control.placeholder = String(schema.examples[0]);
  // An empty text is a value where one has to be given; otherwise it is that nothing was said.
  return { control, read: () => control.value === "" && (!required || special) && start === "" ? undefined : control.value };
}

function linesField(schema, required) {
  const control = make("textarea", { className: "lines", placeholder: "one per line", value: Array.isArray(schema.default) ? schema.default.join("\n") : "" });
  return {
    control,
    read() {
      const lines = control.value.split("\n").map(line => line.trim()).filter(Boolean);
      return lines.length || required || schema.default !== undefined ? lines : undefined;
    },
  };
}

function jsonField(start, required, placeholder = "JSON") {
  const control = make("textarea", { className: "code", rows: 2, placeholder, spellcheck: false, required, value: start === undefined ? "" : json(start) });
  if (start !== undefined) control.rows = Math.min(10, Math.max(2, control.value.split("\n").length));
  return { control, read: () => control.value.trim() === "" ? undefined : JSON.parse(control.value) };
}

function fieldFor(given, required, root) {
  const { schema, nullable } = resolve(given, root);
  const needed = required && !nullable;
  let field;
  if (schema.const !== undefined) field = selectField([schema.const], { chosen: schema.const, required: true });
  else if (schema.enum) field = selectField(schema.enum, { chosen: schema.default, required: needed });
  else if (schema.type === "boolean") field = booleanField(schema, needed);
  else if (schema.type === "integer" || schema.type === "number") field = numberField(schema, needed);
  else if (schema.type === "string") field = textField(schema, needed);
  else if (schema.type === "array" && schema.uniqueItems !== true && isPlainText(schema.items, root)) field = linesField(schema, needed);
  else field = jsonField(schema.default ?? (needed ? example(schema, root) : undefined), needed);
  if (required && nullable) {
    const { read } = field;
    field.read = () => read() ?? null;
  }
  return { ...field, schema };
}

function isPlainText(items, root) {
  const { schema, nullable } = resolve(items, root);
  return !nullable && schema.type === "string" && !schema.enum && !schema.format;
}

/**
 * A form for one object of a schema.
 *
 * `read()` returns the object, or null after it has shown which field is wrong; `blame(path, text)` shows what the
 * server said about a part, and returns whether there is a field for it.
 */
export class SchemaForm {
  #fields = new Map();
  #rest = null;

  constructor(place, schema, { open = {}, prefix = "$" } = {}) {
    const { schema: root } = resolve(schema, schema);
    const whole = { ...schema, ...root };
    this.prefix = prefix;
    place.replaceChildren();
    const required = new Set(root.required ?? []);
    for (const [name, part] of Object.entries(root.properties ?? {})) {
      place.append(this.#add(name, fieldFor(part, required.has(name), whole), required.has(name)));
    }
    if (root.additionalProperties !== false && root.type !== undefined) {
      const alone = !this.#fields.size;
      this.#rest = this.#row(alone ? "Data" : "More fields", jsonField(alone ? open : undefined, false, "{ }"), { optional: !alone, hint: "An object, as JSON." });
      place.append(this.#rest.row);
    }
  }

  #add(name, field, required) {
    const made = this.#row(name, field, { optional: !required, hint: field.schema.description });
    this.#fields.set(name, made);
    return made.row;
  }

  #row(name, field, { optional, hint }) {
    const id = `field-${++count}`;
    const { control } = field;
    Object.assign(control, { id, name });
    const note = make("p", { id: `${id}-note`, className: "hint", textContent: hint ?? "" });
    const fault = make("p", { id: `${id}-fault`, className: "fault" });
    control.setAttribute("aria-describedby", `${note.id} ${fault.id}`);
    const label = make("label", { htmlFor: id, className: "name", textContent: name });
    if (optional) label.append(make("span", { className: "optional", textContent: "optional" }));
    const check = control.type === "checkbox";
    const row = make("div", { className: check ? "field check" : "field" }, ...(check ? [control, label] : [label, control]), note, fault);
    control.addEventListener("input", () => this.#mark(made, ""));
    if (control.tagName === "TEXTAREA") {
      control.addEventListener("keydown", event => {
        const send = control.className === "line" ? !event.shiftKey : event.ctrlKey || event.metaKey;
        if (event.key === "Enter" && send && !event.isComposing) { event.preventDefault(); control.form.requestSubmit(); }
      });
    }
    const made = { ...field, row, fault };
    return made;
  }

  #mark({ control, fault }, text) {
    fault.textContent = text;
    control.toggleAttribute("aria-invalid", Boolean(text));
  }

  read() {
    const out = {};
    let wrong = null;
    const all = [...this.#fields];
    if (this.#rest) all.push([null, this.#rest]);
    for (const [name, field] of all) {
      let text = field.control.checkValidity() ? "" : field.control.validationMessage;
      try {
        const value = field.read();
        if (name === null && value !== undefined) {
          if (typeof value !== "object" || value === null || Array.isArray(value)) text ||= "This has to be a JSON object.";
          else Object.assign(out, value);
        } else if (value !== undefined) out[name] = value;
      } catch (error) {
        text ||= `This is not JSON: ${error.message}`;
      }
      this.#mark(field, text);
      if (text) wrong ??= field;
    }
    wrong?.control.focus();
    return wrong ? null : out;
  }

  blame(path, text) {
    if (!path?.startsWith(this.prefix)) return false;
    const name = path.slice(this.prefix.length).match(/^\.([^.[]+)|^\[['"]?([^\]'"]+)/);
    const field = this.#fields.get(name?.[1] ?? name?.[2]);
    if (!field) return false;
    this.#mark(field, text);
    field.control.focus();
    return true;
  }
}
