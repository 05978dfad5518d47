"""A Piper voice's ONNX file → a session that draws no random numbers and tells how long phonemes last."""

from pathlib import Path
from typing import Any

import numpy as np

from slam.errors import InputError

_TABLE = 1 << 20  # normal numbers; a sentence of a minute takes as many
_NAME = "slam_noise"  # begins the names of what is added to the graph


def open_session(path: Path) -> Any:
    """Open a voice on one thread of the CPU, which keeps the order of sums the same on each machine.

    Raises:
        InputError: it is no ONNX model, or not one of Piper's.
    """
    import onnx
    import onnxruntime
    from google.protobuf.message import DecodeError
    from onnxruntime.capi import onnxruntime_pybind11_state as failures

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; it warns of constants that it could not fold
    try:
        model = onnx.load(str(path))
        fix_noise(model)
        tell_durations(model)
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
        )
    except (
        *(OSError, ValueError, DecodeError, onnx.checker.ValidationError),
        *(failures.Fail, failures.InvalidGraph, failures.InvalidArgument, failures.InvalidProtobuf),
        *(failures.NotImplemented, failures.RuntimeException),
    ) as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        raise InputError(f"{path}: no ONNX model can be read, it is damaged ({reason})") from None
    taken = {each.name for each in session.get_inputs()}
    if not {"input", "input_lengths", "scales"} <= taken <= {"input", "input_lengths", "scales", "sid"}:
        raise InputError(f"{path}: takes {', '.join(sorted(taken))}; that is no voice of Piper's")
    return session


def fix_noise(model: Any) -> None:
    """Have each node that draws normal noise like a tensor read it from a table, in place.

    The table is in the graph. Each node begins at a place of its own and goes round.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    nodes: list[Any] = []
    drawing = [node for node in graph.node if node.op_type == "RandomNormalLike"]
    if not drawing:
        return
    # the legacy generator: numpy promises that its numbers stay the same
    table = np.random.RandomState(0).standard_normal(_TABLE).astype(np.float32)
    constants = {"table": table, "size": np.int64(_TABLE), "one": np.int64(1)}
    for node in graph.node:
        if node.op_type != "RandomNormalLike":
            nodes.append(node)
            continue
        number = drawing.index(node)
        settings = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        name = f"{_NAME}_{number}"
        constants[f"start_{number}"] = np.int64(_TABLE // len(drawing) * number)
        constants[f"scale_{number}"] = np.float32(settings.get("scale", 1.0))
        constants[f"mean_{number}"] = np.float32(settings.get("mean", 0.0))
        steps = (
            ("Shape", (node.input[0],), "shape"),
            ("ReduceProd", (f"{name}_shape",), "count"),
            ("Add", (f"{_NAME}_start_{number}", f"{name}_count"), "end"),
            ("Range", (f"{_NAME}_start_{number}", f"{name}_end", f"{_NAME}_one"), "places"),
            ("Mod", (f"{name}_places", f"{_NAME}_size"), "round"),
            ("Gather", (f"{_NAME}_table", f"{name}_round"), "flat"),
            ("Mul", (f"{name}_flat", f"{_NAME}_scale_{number}"), "scaled"),
            ("Add", (f"{name}_scaled", f"{_NAME}_mean_{number}"), "moved"),
        )
        for kind, inputs, result in steps:
            given: dict[str, Any] = {"keepdims": 0} if kind == "ReduceProd" else {}
            nodes.append(helper.make_node(kind, inputs, [f"{name}_{result}"], **given))
        nodes.append(helper.make_node("Reshape", [f"{name}_moved", f"{name}_shape"], node.output))
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(value), f"{_NAME}_{name}") for name, value in constants.items()
    )


def tell_durations(model: Any) -> None:
    """Make the number of frames of each phoneme an output, in place, where it is not one and can be found."""
    from piper.patch_voice_with_alignment import add_alignment_output

    if len(model.graph.output) > 1:
        return
    try:
        add_alignment_output(model)
    except ValueError:  # there is no such tensor, or more than one may be it
        return
