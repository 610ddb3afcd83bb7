"""Files of DVC: dvc.yaml, params.yaml and dvc.lock."""
