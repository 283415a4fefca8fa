"""BFCL's own decoder and AST checker on JSON lines, in a process of their own.

    python bfcl_official.py <folder with the unpacked bfcl-eval wheel> < cases > verdicts

A case is {"category", "functions", "answer", "text"}; a verdict {"valid", "error_type"}, and the
last line {"decode_seconds", "check_seconds"}. A case {"id", "function", "messages"} asks for the
official prompt instead: the answer is {"messages"}. Only the standard library is needed: modules
for model vendors, Java, JavaScript, retries and file locks are replaced by empty ones, which
neither the decoder of Python calls nor the checker uses. The decoder evaluates arithmetic with
`eval`: give it texts of trusted origin only.
"""

from __future__ import annotations

import collections
import json
import sys
import time
import types


def stub(name: str, **members) -> None:
    module = types.ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    models = collections.defaultdict(lambda: types.SimpleNamespace(underscore_to_dot=False))
    stub("bfcl_eval.constants.model_config", MODEL_CONFIG_MAPPING=models)
    stub("bfcl_eval.model_handler.parser.java_parser", parse_java_function_call=None)
    stub("bfcl_eval.model_handler.parser.js_parser", parse_javascript_function_call=None)
    stub("filelock", FileLock=None)
    stub(
        "tenacity",
        retry=None,
        retry_if_exception_message=None,
        retry_if_exception_type=None,
        wait_random_exponential=None,
    )
    from bfcl_eval.constants.enums import Language
    from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker
    from bfcl_eval.model_handler.utils import (
        default_decode_ast_prompting,
        system_prompt_pre_processing_chat_model,
    )
    from bfcl_eval.utils import (
        add_language_specific_hint_to_function_doc,
        is_function_calling_format_output,
    )

    decode_seconds = check_seconds = 0.0
    for line in sys.stdin:
        case = json.loads(line)
        if "messages" in case:
            (entry,) = add_language_specific_hint_to_function_doc([case])
            messages = system_prompt_pre_processing_chat_model(
                case["messages"], entry["function"], case["id"]
            )
            print(json.dumps({"messages": messages}))
            continue
        start = time.perf_counter()
        try:
            decoded = default_decode_ast_prompting(case["text"])
            error = None if is_function_calling_format_output(decoded) else "parse_failure"
        except Exception:  # the runner counts any failure of the decoder as a wrong answer
            error = "parse_failure"
        decode_seconds += time.perf_counter() - start
        if error:
            result = {"valid": False, "error_type": error}
        else:
            start = time.perf_counter()
            try:
                result = ast_checker(
                    case["functions"],
                    decoded,
                    case["answer"],
                    Language.PYTHON,
                    case["category"],
                    "m",
                )
            except Exception as failure:
                result = {"valid": False, "error_type": f"crash:{type(failure).__name__}"}
            check_seconds += time.perf_counter() - start
        error_type = None if result["valid"] else result["error_type"]
        print(json.dumps({"valid": result["valid"], "error_type": error_type}))
    print(json.dumps({"decode_seconds": decode_seconds, "check_seconds": check_seconds}))


if __name__ == "__main__":
    main()
