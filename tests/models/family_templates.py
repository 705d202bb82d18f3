"""Chat templates with the Jinja features that model families' templates use, in our own words."""

from __future__ import annotations

LLAMA3 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not day is defined %}
    {%- if strftime_now is defined %}
        {%- set day = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set day = "1 Jan 2000" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set instructions = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set instructions = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Tools: " + tools | tojson(indent=4) }}
{%- endif %}
{{- "Day: " + day + "\\n\\n" + instructions + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif message.tool_calls|length != 1 %}
        {{- raise_exception("One call at a time") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
SMOLLM3 = """{%- macro header(name) -%}
{{ "<|im_start|>" ~ name ~ "\\n" }}
{%- endmacro -%}
{%- set thinks = enable_thinking | default(true) -%}
{%- set first = messages[0] if messages[0].role == "system" else none -%}
{%- if first and first.content.rstrip().endswith("/no_think") -%}
{%- set thinks = false -%}
{%- endif -%}
{{ header("system") }}Date: {{ strftime_now("%d %B %Y") }},
reasoning: {{ "yes" if thinks else "no" }}
{% if first %}{{ first.content.replace("/no_think", "").rstrip() ~ "\\n" }}{% endif -%}
<|im_end|>
{% for message in messages if message.role != "system" -%}
{{ header(message.role) }}
{%- if message.role == "assistant" -%}
{% generation %}{{ message.content.lstrip("\\n") ~ "<|im_end|>\\n" }}{% endgeneration %}
{%- else -%}
{{ message.content ~ "<|im_end|>\\n" }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ header("assistant") }}{{ "" if thinks else "<think>\\n\\n</think>\\n" }}
{%- endif -%}
"""
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\nTools:' }}
    {%- for tool in tools %}{{- "\\n" + tool | tojson }}{%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nBe useful.<|im_end|>\\n' }}
{%- endif %}
{%- set state = namespace(open=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if state.open and message.role == "user"
        and not (message.content.startswith('<result>')
        and message.content.endswith('</result>')) %}
        {%- set state.open = false %}
        {%- set state.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in message.content %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
            {%- set thought = message.content.split('</think>')[0].rstrip('\\n') %}
            {%- set thought = thought.split('<think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > state.last and (loop.last or thought) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') }}
            {{- '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set rules = messages[0]["content"] %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set turns = messages %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set asked = turns | selectattr("role", "equalto", "user") | list %}
{%- set place = namespace(index=0) %}
{%- for turn in turns %}
    {%- if not (turn.role == "tool"
        or (turn.tool_calls is defined and turn.tool_calls is not none)) %}
        {%- if (turn["role"] == "user") != (place.index % 2 == 0) %}
            {{- raise_exception("User and assistant take turns") }}
        {%- endif %}
        {%- set place.index = place.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for turn in turns %}
    {%- if turn["role"] == "user" %}
        {%- if tools is not none and (turn == asked[-1]) %}{{- "Tools" }}{%- endif %}
        {%- if loop.last and rules is defined %}
            {{- "[INST] " + rules + "\\n\\n" + turn["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + turn["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif turn["role"] == "assistant" %}
        {{- " " + turn["content"] | trim + eos_token }}
    {%- else %}
        {{- raise_exception("Unknown role " + turn["role"]) }}
    {%- endif %}
{%- endfor %}
"""
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set rules = messages[0]['content'] %}{% else %}{% set rest = messages %}"
    "{% set rules = false %}{% endif %}{% for turn in rest %}"
    "{% if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles take turns') }}{% endif %}"
    "{% if loop.index0 == 0 and rules != false %}"
    "{% set text = '<<SYS>>\\n' + rules + '\\n<</SYS>>\\n\\n' + turn['content'] %}{% else %}"
    "{% set text = turn['content'] %}{% endif %}{% if turn['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}"
    "{% elif turn['role'] == 'assistant' %}{{ ' ' + text.strip() + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set opening = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set opening = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set opening = "" -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for turn in turns -%}
    {%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Roles take turns") }}
    {%- endif -%}
    {%- set role = "model" if turn['role'] == 'assistant' else turn['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (opening if loop.first else "") }}
    {%- if turn['content'] is string -%}
        {{ turn['content'] | trim }}
    {%- elif turn['content'] is iterable -%}
        {%- for part in turn['content'] -%}
            {%- if part['type'] == 'text' -%}{{ part['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("No such content") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""
PHI3 = (
    "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}"
    "{{ '<|system|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{% elif message['role'] in ['user', 'assistant'] %}"
    "{{ '<|' ~ message.role ~ '|>\\n' ~ message.content ~ '<|end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI4 = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
PHI4_MINI = (
    "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and "
    "message['tools'] is not none %}{{ message['tools'] }}{% else %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
GRANITE = """{%- if messages[0]['role'] == 'system' %}
    {%- set rules = messages[0]['content'] %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set rules = "Cutoff: April 2024.\\nToday's date: " + strftime_now('%B %d, %Y') + "." %}
    {%- if tools and documents %}
        {%- set rules = rules + " You have tools and documents." %}
    {%- elif documents %}
        {%- set rules = rules + " You have documents." %}
    {%- endif %}
    {%- if controls and 'length' in controls %}
        {%- set rules = rules + controls['length'] %}
    {%- endif %}
    {%- set turns = messages %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + rules + '<|end_of_text|>
' }}
{%- for turn in turns %}
    {{- '<|start_of_role|>' + turn['role'] + '<|end_of_role|>' + turn['content'] + '<|end_of_text|>
' }}
    {%- if loop.last and add_generation_prompt %}
        {{- '<|start_of_role|>assistant' }}
        {%- if controls %}{{- ' ' + controls | tojson() }}{%- endif %}
        {{- '<|end_of_role|>' }}
    {%- endif %}
{%- endfor %}"""
GLM4 = """[gMASK]<sop>
{%- if tools -%}
<|system|>
# Tools
{% for tool in tools %}{{ tool | tojson(ensure_ascii=False) }}{% endfor %}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
<|system|>
{{ message.content }}
    {%- endif -%}
{%- endfor -%}
{%- for message in messages if message.role != 'system' -%}
    {%- set meta = message.get("metadata", "") -%}
<|{{ message['role'] }}|>{{ meta }}
{{ message['content'] }}
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""

BY_FAMILY = {
    "llama3": LLAMA3,
    "smollm3": SMOLLM3,
    "qwen2": QWEN,
    "nemo": MISTRAL,
    "granite": GRANITE,
    "smollm": QWEN,
    "phi4": PHI4,
    "phi4_mini": PHI4_MINI,
    "glm4": GLM4,
    "llama2": LLAMA2,
    "mistral_v3": MISTRAL,
    "phi3": PHI3,
    "gemma": GEMMA,
}
"""Templates by the names in `tokenizer_families`."""

CONVERSATIONS = (
    [
        {"role": "system", "content": "Be brief. /no_think "},
        {"role": "user", "content": " What is 2+2?\n"},
        {"role": "assistant", "content": "<think>\nadd\n</think>\n\nIt is 4. "},
        {"role": "user", "content": "And é in 東京?"},
    ],
    [{"role": "user", "content": "  Write <b>code</b>:\n\n\tx = {}"}],
)
