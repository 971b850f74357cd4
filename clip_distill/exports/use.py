"""Lines of code for an export's card: how each target's folder is used."""

from __future__ import annotations

USE = {
    "open_clip": """import open_clip
model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")""",
    "rclip": "RCLIP_DATADIR=FOLDER rclip 'a dog on a beach'",
    "immich": """# not run: the folder in the place of a model of the same width in the machine-learning cache;
# choose that model under Administration > Settings > Machine Learning > Smart Search, then run it on all photos
docker cp FOLDER/. immich_machine_learning:/cache/clip/MODEL_NAME/""",
    "fastembed": """from fastembed import ImageEmbedding, TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
TextEmbedding.add_custom_model(model="student", pooling=PoolingType.DISABLED, normalization=True,
    sources=ModelSource(hf="none/none"), dim=WIDTH, model_file="model.onnx")
text = TextEmbedding("student", specific_model_path="FOLDER/text")
image = ImageEmbedding("Qdrant/clip-ViT-B-32-vision", specific_model_path="FOLDER/image")""",
    "transformers.js": """import { AutoTokenizer, CLIPTextModelWithProjection, env } from "@huggingface/transformers";
env.localModelPath = "PARENT_OF_FOLDER/"; env.allowRemoteModels = false;
const tokenizer = await AutoTokenizer.from_pretrained("NAME");
const model = await CLIPTextModelWithProjection.from_pretrained("NAME", { dtype: "DTYPE" });
const { text_embeds } = await model(tokenizer(["a dog"], { padding: "max_length", truncation: true }));""",
    "transformers": """from transformers import AutoModel, AutoTokenizer
model = AutoModel.from_pretrained("FOLDER"TRUST)
tokens = AutoTokenizer.from_pretrained("FOLDER"TRUST)(["a dog"], padding=True, return_tensors="pt")
embeddings = model.get_text_features(**tokens).pooler_output""",
    "sentence-transformers": """from sentence_transformers import SentenceTransformer
model = SentenceTransformer("FOLDER"TRUST)
scores = model.similarity(model.encode(["a dog"]), model.encode([photo]))  # photo: PIL.Image""",
    "ort": """// Kotlin, onnxruntime-android: ids int64 [1, L], pixels float32 [1, 3, S, S]; towers.json says how
val session = OrtEnvironment.getEnvironment().createSession("FOLDER/text.ort")
val embedding = session.run(mapOf("tokens" to OnnxTensor.createTensor(env, ids)))""",
    "openvino": """import openvino
model = openvino.Core().compile_model("FOLDER/text.xml", "CPU")
embeddings = model(ids)[0]  # int64 [B, L]; towers.json says how photos and texts become numbers""",
    "executorch": """from executorch.runtime import Runtime
method = Runtime.get().load_program("FOLDER/text.pte").load_method("forward")
embedding = method.execute([ids])[0]  # int32 [1, C]""",
    "litert": """from ai_edge_litert.interpreter import Interpreter
model = Interpreter("FOLDER/text.tflite"); model.allocate_tensors()
model.set_tensor(model.get_input_details()[0]["index"], ids); model.invoke()  # int32 [1, C]
embedding = model.get_tensor(model.get_output_details()[0]["index"])""",
    "coreml": """// Swift. Not run: Core ML is on Apple's systems alone
let model = try MLModel(contentsOf: MLModel.compileModel(at: URL(filePath: "FOLDER/text.mlpackage")))
let out = try model.prediction(from: MLDictionaryFeatureProvider(dictionary: ["tokens": ids]))  // int32 [1, C]""",
    "web": """python -m http.server --directory FOLDER 8000   # any server of files; then open http://127.0.0.1:8000""",
    "picquery": """# not run on a phone: the files in the place of those of PicQuery's CLIP build, then build the app
cp FOLDER/*.ort FOLDER/bpe_vocab_gz PicQuery/app/src/main/assets/""",
    "queryable": """# not run: add these to the project in Xcode, which compiles the packages, and build it
cp -r FOLDER/*.mlpackage FOLDER/vocab.json FOLDER/merges.txt Queryable/Queryable/CoreMLModels/""",
}
ANY = """import clip_distill as cd
model = cd.load("FOLDER")
scores = model.encode_text(["a dog"]) @ model.encode_image(["photo.jpg"]).T"""
