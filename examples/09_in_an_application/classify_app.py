"""Name pictures in an application of FastAPI: ENGINE=out.onnx uvicorn classify_app:app"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request, UploadFile

from p4q_edge.runtime import InputError, ZeroShotClassifier


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with ZeroShotClassifier(os.environ["ENGINE"]) as app.state.classifier:
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/classify")
def classify(request: Request, image: UploadFile) -> dict[str, Any]:  # not async: it runs in a thread
    try:
        best = request.app.state.classifier.classify(image.file, top_k=3)
    except InputError as error:
        raise HTTPException(422, str(error)) from error
    return {"label": best.label, "score": best.score, "known": best.known, "topk": best.topk}
