"""A GGUF file written anew with every matrix in one type: Q8_0, as wide as our int8, or F32."""

import pathlib

import gguf


def rewrite(source: pathlib.Path, target: pathlib.Path, kind: str) -> pathlib.Path:
    """The same model and metadata, matrices in `kind` ('Q8_0', 'F32'); vectors stay float32."""
    file_type = {
        "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0, "F32": gguf.LlamaFileType.ALL_F32
    }[kind]  # fmt: skip
    matrix = gguf.GGMLQuantizationType[kind]
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value_type = field.types[0]
        sub = field.types[-1] if value_type == gguf.GGUFValueType.ARRAY else None
        value = field.contents()
        if field.name == "general.file_type":
            value = int(file_type)
        writer.add_key_value(field.name, value, value_type, sub_type=sub)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if values.ndim > 1 and kind != "F32":
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, matrix), raw_dtype=matrix)
        else:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
