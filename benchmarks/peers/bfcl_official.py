"""BFCL's own decoder and AST checker on JSON lines, in a process of their own.

    python bfcl_official.py <folder with the unpacked bfcl-eval wheel> < cases > verdicts

A case is {"category", "functions", "answer", "text"}; a verdict {"valid", "error_type"}, and the
last line {"decode_seconds", "check_seconds"}. Further kinds of cases:

    {"id", "function", "messages"}         the official prompt: {"messages"}
    {"convert", "text", "kind", "inner"}   value of a text in a language: {"value"} or {"error"}
    {"entry", "gold", "steps"}             a multi-turn answer, texts by turn and step: a verdict

Python answers need the standard library only: modules for model vendors, retries and file locks are
replaced by empty ones, which neither decoders nor checkers use. Java and JavaScript need the
grammars that the package pins (tree_sitter 0.21.3, tree-sitter-java 0.21.0, tree-sitter-javascript
0.21.4), multi-turn items of MathAPI mpmath 1.3.0. Decoder and multi-turn checker evaluate text with
`eval`: give them texts of trusted origin only.
"""

from __future__ import annotations

import collections
import contextlib
import importlib
import json
import re
import sys
import time
import types


def stub(name: str, **members) -> None:
    module = types.ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module


def no_grammar(text: str):
    raise SystemExit("the grammars that bfcl-eval pins are not installed in this environment")


def convert(case: dict) -> dict:
    """The value of a text as the official converters of a language read it."""
    from bfcl_eval.eval_checker.ast_eval.type_convertor import (
        java_type_converter,
        js_type_converter,
    )

    function = {
        "java": java_type_converter.java_type_converter,
        "javascript": js_type_converter.js_type_converter,
    }[case["convert"]]
    try:
        return {"value": function(case["text"], case["kind"], case["inner"])}
    except Exception as failure:  # a type without rules
        return {"error": type(failure).__name__}


def judge_turns(case: dict, number: int) -> dict:
    """Verdict on a multi-turn answer, as `eval_runner._evaluate_single_multi_turn_entry` makes it
    (which cannot be imported without the vendors' packages)."""
    from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils
    from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker
    from bfcl_eval.model_handler.utils import default_decode_execute_prompting

    if len(case["steps"]) != len(case["gold"]):
        return {"valid": False, "error_type": "multi_turn:force_terminated"}
    turns = []
    for texts in case["steps"]:
        turns.append([])
        for text in texts:
            try:
                calls = default_decode_execute_prompting(text)
            except Exception:
                continue
            if not multi_turn_utils.is_empty_execute_response(calls):
                turns[-1].append(calls)
    model = f"model{number}"  # instances are kept by this name
    category = case["entry"]["id"].rsplit("_", 1)[0]
    try:
        result = multi_turn_checker(turns, case["gold"], case["entry"], category, model)
    except Exception as failure:
        result = {"valid": False, "error_type": f"crash:{type(failure).__name__}: {failure}"}
    for name in [n for n in vars(multi_turn_utils) if re.match(rf"{model}_.*_instance$", n)]:
        delattr(multi_turn_utils, name)
    return {"valid": result["valid"], "error_type": result.get("error_type")}


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    models = collections.defaultdict(lambda: types.SimpleNamespace(underscore_to_dot=False))
    stub("bfcl_eval.constants.model_config", MODEL_CONFIG_MAPPING=models)
    for name, function in (("java", "java"), ("js", "javascript")):
        module = f"bfcl_eval.model_handler.parser.{name}_parser"
        try:
            importlib.import_module(module)
        except (ImportError, TypeError):  # no grammars, or newer ones than the package's
            stub(module, **{f"parse_{function}_function_call": no_grammar})
    stub("filelock", FileLock=None)
    stub(
        "tenacity",
        retry=None,
        retry_if_exception_message=None,
        retry_if_exception_type=None,
        wait_random_exponential=None,
    )

    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # the package prints in between
        for answer in answered(sys.stdin):
            print(json.dumps(answer), file=answers)


def answered(lines):
    """The answer to each line's case, at the end the seconds."""
    from bfcl_eval.constants.enums import Language, ReturnFormat
    from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker
    from bfcl_eval.model_handler.utils import (
        default_decode_ast_prompting,
        system_prompt_pre_processing_chat_model,
    )
    from bfcl_eval.utils import (
        add_language_specific_hint_to_function_doc,
        is_empty_output,
        is_function_calling_format_output,
    )

    languages = {"simple_java": "JAVA", "simple_javascript": "JAVASCRIPT"}
    decode_seconds = check_seconds = 0.0
    for number, line in enumerate(lines):
        case = json.loads(line)
        if "convert" in case or "entry" in case:
            yield convert(case) if "convert" in case else judge_turns(case, number)
            continue
        if "messages" in case:
            (entry,) = add_language_specific_hint_to_function_doc([case])
            messages = system_prompt_pre_processing_chat_model(
                case["messages"], entry["function"], case["id"]
            )
            yield {"messages": messages}
            continue
        language = languages.get(case["category"], "PYTHON")
        start = time.perf_counter()
        try:
            decoded = default_decode_ast_prompting(case["text"], ReturnFormat[language])
            error = None if is_function_calling_format_output(decoded) else "parse_failure"
        except Exception:  # the runner counts any failure of the decoder as a wrong answer
            error = "parse_failure"
            decoded = None
        decode_seconds += time.perf_counter() - start
        if case["category"].endswith("relevance"):  # as _evaluate_single_relevance_entry
            called = decoded is not None and not is_empty_output(decoded)
            due = "irrelevance" not in case["category"]
            wrong = "relevance:not_called" if due else "irrelevance:called"
            yield {"valid": called == due, "error_type": None if called == due else wrong}
            continue
        if error:
            result = {"valid": False, "error_type": error}
        else:
            start = time.perf_counter()
            try:
                result = ast_checker(
                    case["functions"],
                    decoded,
                    case["answer"],
                    Language[language],
                    case["category"],
                    "m",
                )
            except Exception as failure:
                result = {"valid": False, "error_type": f"crash:{type(failure).__name__}"}
            check_seconds += time.perf_counter() - start
        error_type = None if result["valid"] else result["error_type"]
        yield {"valid": result["valid"], "error_type": error_type}
    yield {"decode_seconds": decode_seconds, "check_seconds": check_seconds}


if __name__ == "__main__":
    main()
