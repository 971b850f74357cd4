from pathlib import Path
import importlib.util, pytest
spec = importlib.util.spec_from_file_location("tf", Path(__file__).with_name("test_fit.py")); tf = importlib.util.module_from_spec(spec); spec.loader.exec_module(tf)
def test_inf(tiny_data, tiny_views_store, tmp_path):
    with pytest.raises(SystemExit, match="needs an end"):
        tf.fit("image", tiny_data, tiny_views_store, tmp_path, "--trainer.max_epochs", "-1")
def test_timm(tiny_data, tiny_views_store, tmp_path):
    from clip_distill import cli
    cli.main(["fit","--tower","image","--data",str(tiny_data),"--store",str(tiny_views_store),"--out",str(tmp_path),"--student.name","timm","--student.options","{model: mobilenetv3_small_050, input_resolution: 32}","--loader.workers","0","--trainer.max_epochs","1","--trainer.enable_progress_bar","false"])
    cli.main(["export","--image_student",str(tmp_path),"--store",str(tiny_views_store),"--out",str(tmp_path/"ex")])
